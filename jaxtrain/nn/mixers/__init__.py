"""Mixers along the length, a family a file."""
