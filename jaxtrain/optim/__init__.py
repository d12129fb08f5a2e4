"""Optimizers and learning-rate schedules as configurations that build optax transformations."""
