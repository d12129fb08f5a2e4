"""Feed-forward layers, one family in each file."""
