"""One right forward pass of a reward model, for many sequences."""
