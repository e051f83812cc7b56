"""Sweeps: campaigns over model sizes, training compute and seeds, and the one table of what came of them."""
