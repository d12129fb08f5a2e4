"""State, step, loop, hooks, checkpoints and metrics of a training run."""
