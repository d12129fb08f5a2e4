"""The linears of a layer, found by their paths in it, and put into their places."""

import functools
from collections.abc import Collection, Sequence

from flax import nnx

from jaxtrain.nn.linear.base import Linear

Path = tuple[nnx.graph.Key, ...]


def linears_of(layer: nnx.Module) -> dict[Path, Linear]:
    """Return the linears of a layer by their paths, without those that are parts of another."""
    found = {path: module for path, module in nnx.iter_modules(layer) if isinstance(module, Linear)}
    return {path: linear for path, linear in found.items() if not _within(found.keys() - {path}, path)}


def outside_of(linears: Collection[Path], layer: nnx.Module) -> str | None:
    """Return the name of a variable of the layer that is in none of the linears; None where there is none."""
    names = (".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(layer)) if not _within(linears, path))
    return next(names, None)


def put(layer: nnx.Module, path: Path, module: nnx.Module) -> None:
    """Give a layer a module in the place of the linear at the path."""
    *above, name = map(str, path)
    setattr(functools.reduce(getattr, above, layer), name, module)


def _within(linears: Collection[Path], path: Sequence[nnx.graph.Key]) -> bool:
    """Tell whether a path leads into one of the linears."""
    return any(tuple(path[:end]) in linears for end in range(len(path)))
