"""Text as ids: vocabularies and prompt templates."""
