"""From prompts to answers and actions."""
