"""Draw, score and store pools: prompts with their responses and rewards on disk."""
