"""Correct forward passes of a reward model, for many sequences."""
