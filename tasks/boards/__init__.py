"""The stages for a board game: self-play, the labels of its positions, learning from them, matches."""
