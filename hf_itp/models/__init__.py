"""A transformers model, run differently and left unchanged; names of the host libraries; files of checkpoints."""
