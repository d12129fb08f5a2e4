"""Feed-forward layers, a family a file."""
