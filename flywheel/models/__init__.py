"""Models: made, loaded, saved, named by their weights, and sampled from."""
