"""Run a transformers model differently without changing it, trace where it came from, check its files."""
