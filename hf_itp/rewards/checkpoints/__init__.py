"""What the checkpoint of a reward model is, and how it loads."""
