"""The families of published models, one in each file."""
