"""Read, check and load the checkpoint of a reward model."""
