"""Layers, one family in each file: an NNX module beside its frozen configuration."""
