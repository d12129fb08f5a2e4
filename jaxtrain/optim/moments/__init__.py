"""Formats of the moments of 8-bit optimizers, one in each file."""
