"""What the sampler computes with: attention, draws from logits, random numbers, warping."""
