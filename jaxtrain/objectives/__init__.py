"""Objectives, the functions that training minimises: each is a sum of means over the data."""
