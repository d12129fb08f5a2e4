"""A product in int8 is that of numpy's integers, and no row of it depends on another."""

import jax
import numpy as np
import pytest
from tolerances import SAME_SUMS, assert_close

from jaxtrain.nn.linear.int8 import BLOCK, multiply_int8


def _numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


X, W = _numbers(2, 40, 70), _numbers(70, 33)


def _squares(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes and, for every element, the scale of its square of 32 x 32."""
    rows, columns = (-size % BLOCK for size in x.shape)
    padded = np.pad(x, ((0, rows), (0, columns)))
    tiles = padded.reshape(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)
    scales = np.abs(tiles).max((1, 3), keepdims=True) / np.float32(127)
    codes = np.round(tiles / scales).astype(np.int64).reshape(padded.shape)
    return codes, np.broadcast_to(scales, tiles.shape).reshape(padded.shape)


def _by_integers(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return the product: integers within each block of the inputs, then scales, in float64."""
    (a, a_scale), (b, b_scale) = _squares(x), _squares(w)
    total = np.zeros((a.shape[0], b.shape[1]))
    for start in range(0, a.shape[1], BLOCK):
        part = slice(start, start + BLOCK)
        total += (a[:, part] @ b[part]) * np.outer(a_scale[:, start], b_scale[start]).astype(np.float64)
    return total[: x.shape[0], : w.shape[1]]


@pytest.mark.parametrize("shards", [1, 3, 2])  # 2 does not divide the three blocks
def test_it_is_the_product_of_integers(shards):
    desired = np.stack([_by_integers(row, W) for row in X]).astype(np.float32)
    assert_close(multiply_int8(X, W, shards), desired, SAME_SUMS)


def test_the_compiled_product_is_of_eight_bit_codes_added_in_int32():
    text = jax.jit(multiply_int8, static_argnums=2).lower(X, W, 1).as_text()
    [product] = [line for line in text.splitlines() if "dot_general" in line]
    assert "xi8>" in product and "xi32>" in product


def test_no_row_depends_on_another():
    assert_close(multiply_int8(X[1:], W), np.asarray(multiply_int8(X, W))[1:], SAME_SUMS)
