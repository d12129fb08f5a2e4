"""Linears, the weights that layers own, a kind a file."""
