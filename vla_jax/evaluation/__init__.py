"""How good a policy is: held-out questions and actions, closed-loop rollouts, and the report."""
