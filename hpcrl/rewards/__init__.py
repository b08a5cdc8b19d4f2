"""Verifiers and reward functions: (prompts, responses, columns) to one number for each response."""
