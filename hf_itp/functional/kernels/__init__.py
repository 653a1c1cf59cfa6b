"""Numerics of the sampler: attention, draws from logits, random numbers, warping."""
