"""Where a parameter of the first layout of checkpoints lies today: layers owned matrices then, and linears now."""

Path = tuple[str | int, ...]

_LINEARS = {
    "mixer": ("query", "key", "value", "output", "beta"),
    "heads": ("query", "key", "value", "gate", "output"),  # of recurrent mixers
    "decay": ("down", "up"),
    "mlp": ("gate", "up", "down"),
}
_KERNELS = {(layer, name): (name, "kernel") for layer, names in _LINEARS.items() for name in names}
_BIASES = {(layer, f"{name}_bias"): (name, "bias") for layer, names in _LINEARS.items() for name in names}
_MOVED = _KERNELS | _BIASES | {("decay", "weight"): ("step", "kernel")}


def moved(path: Path) -> Path:
    """Return today's path of what lay at `path`: `(..., "mixer", "query")` to `(..., "mixer", "query", "kernel")`.

    What comes before the layer and behind the parameter stays, so paths in the state of an optimizer may be given too.
    """
    for i, step in enumerate(zip(path, path[1:], strict=False)):
        if step in _MOVED:
            return (*path[: i + 1], *_MOVED[step], *path[i + 2 :])
    return path
