"""An array and its blocks as a matrix of tiles, [rows / a, a, columns / b, b], for kernels."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array

from jaxtrain_kernels.block_quant.array import Blocks


@dataclass(frozen=True, slots=True)
class View:
    """A matrix of `rows` x `columns` in tiles of `a` x `b`; `shape` and `counts` are those of the array and its scales.

    Axes between the two blocked ones become columns, all axes before them rows.
    """

    shape: tuple[int, ...]
    counts: tuple[int, ...]
    rows: int
    columns: int
    a: int
    b: int

    @property
    def padded(self) -> tuple[int, int]:
        return -(-self.rows // self.a) * self.a, -(-self.columns // self.b) * self.b

    def matrix(self, x: Array, multiple: tuple[int, int] = (1, 1), *, filled: int = 0) -> Array:
        """Return an array of the view's shape as a matrix, padded to whole tiles and to these multiples."""
        x = x.reshape(self.rows, self.columns)
        whole = [-(-n // m) * m for n, m in zip(self.padded, multiple, strict=True)]
        missing = [(0, n - size) for n, size in zip(whole, x.shape, strict=True)]
        return jnp.pad(x, missing, constant_values=filled) if any(more for _, more in missing) else x

    def scales(self, x: Array, multiple: tuple[int, int] = (1, 1)) -> Array:
        """Return the numbers of blocks as a matrix, one for each tile of `matrix` with the same padding."""
        x = x.reshape(self.padded[0] // self.a, self.padded[1] // self.b)
        rows, columns = (-(-n // m) * m for n, m in zip(self.padded, multiple, strict=True))
        missing = [(0, rows // self.a - x.shape[0]), (0, columns // self.b - x.shape[1])]
        return jnp.pad(x, missing) if any(more for _, more in missing) else x

    def array(self, x: Array) -> Array:
        """Return the array of a matrix: the inverse of `matrix`."""
        return x[: self.rows, : self.columns].reshape(self.shape)

    def per_block(self, x: Array) -> Array:
        """Return the numbers of blocks: the inverse of `scales`."""
        return x[: self.padded[0] // self.a, : self.padded[1] // self.b].reshape(self.counts)


def refuses(shape: tuple[int, ...], blocks: Blocks) -> list[str]:
    """Return why the blocks are not tiles of a matrix."""
    if -1 not in blocks.axes or len(blocks.axes) > 2:
        return [f"blocks lie along axes {blocks.axes}, not along the last one or the last and one more"]
    extents = blocks.per_axis(len(shape))
    other = min(blocks.axes)
    reasons = []
    if other < -2 and shape[-1] % extents[-1]:
        reasons.append(f"{extents[-1]} does not divide the last axis, {shape[-1]}, and other axes lie between")
    if other < -1 and len(shape) > -other and shape[other] % extents[other]:
        reasons.append(f"{extents[other]} does not divide axis {other}, {shape[other]}, and other axes lie before it")
    return reasons


def view_of(shape: tuple[int, ...], blocks: Blocks) -> View:
    """Return the view of an array for which `refuses` gives no reasons."""
    extents = blocks.per_axis(len(shape))
    other = min(blocks.axes)
    split = len(shape) + (other + 1 if other < -1 else -1)
    return View(
        shape=shape,
        counts=blocks.counts(shape),
        rows=math.prod(shape[:split]),
        columns=math.prod(shape[split:]),
        a=extents[other] if other < -1 else 1,
        b=extents[-1],
    )
