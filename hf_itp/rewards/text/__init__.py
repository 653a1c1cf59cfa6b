"""Prompts and responses as the tokens a reward model reads."""
