"""Mixers along the length, one family in each file."""
