"""Ways to spend inference on a better answer. Searchers see models and rewards through small protocols only."""
