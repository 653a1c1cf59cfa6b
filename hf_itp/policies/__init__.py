"""Policies, which draw text: loading them, their tokenizers, and what a policy must be to decode with a strategy."""
