"""How the checkpoint of a reward model is read, checked and loaded."""
