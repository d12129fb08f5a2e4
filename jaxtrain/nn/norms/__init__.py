"""Normalisations over the width, a family a file."""
