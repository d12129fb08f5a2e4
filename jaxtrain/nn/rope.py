"""Rotary positions, Su et al. (2021), arXiv:2104.09864, in the half-split layout of released weights.

Pair i of a head is (x[i], x[i + K/2]), rotated by position * theta^(-2i/K).
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxtrain.ranges import check_at_least_one, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearScaling:
    """All positions divided by `factor`. Chen et al. (2023), arXiv:2306.15595."""

    factor: float

    def __post_init__(self):
        check_positive(self, "factor")

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        return frequencies / self.factor


@dataclass(frozen=True, kw_only=True, slots=True)
class Llama3Scaling:
    """Long wavelengths divided by `factor`, short ones kept, a linear blend between.

    The Llama 3 Herd of Models (2024), arXiv:2407.21783: `low` and `high` count the turns that a wavelength makes in
    the `original_length` the model was first trained on.
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original_length: int = 8192

    def __post_init__(self):
        check_positive(self, "factor", "low")
        check_at_least_one(self, "original_length")
        if not self.low < self.high < math.inf:
            raise ValueError(f"high={self.high}: must be above low={self.low}")

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        turns = self.original_length * frequencies / (2 * math.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return frequencies * (kept + (1 - kept) / self.factor)


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeConfig:
    theta: float = 10_000.0
    scaling: LinearScaling | Llama3Scaling | None = None

    def __post_init__(self):
        check_positive(self, "theta")

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Return the angle a position adds to each pair, radians, float32 [K/2]."""
        frequencies = self.theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        return (self.scaling(frequencies) if self.scaling else frequencies).astype(np.float32)


def rotate(x: Float[Array, "B L H K"], positions: Int[Array, "B L"], config: RopeConfig) -> Float[Array, "B L H K"]:
    """Rotate each head by its position; angles, sines and the product are float32."""
    angle_BLK = positions[..., None].astype(jnp.float32) * config.frequencies(x.shape[-1])[None, None, :]
    cos, sin = jnp.cos(angle_BLK)[:, :, None, :], jnp.sin(angle_BLK)[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1).astype(x.dtype)
