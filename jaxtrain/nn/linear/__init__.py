"""Linears, the linear maps of layers, one kind in each file."""
