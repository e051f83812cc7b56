"""Judges: what an answer is worth."""
