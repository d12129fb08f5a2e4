"""Layers: one family a file, each NNX module beside its frozen configuration."""
