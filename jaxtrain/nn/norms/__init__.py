"""Normalisations over the width, one family in each file."""
