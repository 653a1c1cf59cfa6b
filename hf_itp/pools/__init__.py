"""Prompts with responses and rewards on disk."""
