"""What a FLOP buys: when a search pays for itself."""
