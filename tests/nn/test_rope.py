"""Rotary positions against complex multiplication in float64, and the scalings against the published case split."""

import math

import numpy as np
import pytest
from tolerances import CLOSED_FORM, assert_close

from jaxtrain.nn.rope import LinearScaling, Llama3Scaling, RopeConfig, rotate

HEAD_DIM = 16


def _llama3_by_cases(frequency: float, factor: float, low: float, high: float, original_length: int) -> float:
    wavelength = 2 * math.pi / frequency
    if wavelength < original_length / high:
        return frequency
    if wavelength > original_length / low:
        return frequency / factor
    smooth = (original_length / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


def _frequencies(theta: float, scaling) -> list[float]:
    plain = [theta ** (-2 * i / HEAD_DIM) for i in range(HEAD_DIM // 2)]
    match scaling:
        case None:
            return plain
        case LinearScaling(factor=factor):
            return [f / factor for f in plain]
        case Llama3Scaling(factor=factor, low=low, high=high, original_length=length):
            return [_llama3_by_cases(f, factor, low, high, length) for f in plain]


SCALINGS = [None, LinearScaling(factor=4.0), Llama3Scaling(factor=8.0, original_length=64)]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rotation_is_multiplication_by_a_unit_complex_number(scaling):
    config = RopeConfig(theta=500.0, scaling=scaling)
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 6, 3, HEAD_DIM)).astype(np.float32)
    positions = random.integers(0, 40, (2, 6)).astype(np.int32)
    z = x[..., : HEAD_DIM // 2] + 1j * x[..., HEAD_DIM // 2 :].astype(np.float64)
    angle = positions[:, :, None, None] * np.array(_frequencies(500.0, scaling))
    z = z * np.exp(1j * angle)
    assert_close(
        rotate(x, positions, config), np.concatenate([z.real, z.imag], -1), CLOSED_FORM._replace(absolute=1e-5)
    )


def test_llama3_scaling_keeps_fast_pairs_divides_slow_ones_and_blends_between():
    scaling = Llama3Scaling()
    plain, scaled = (RopeConfig(theta=500_000.0, scaling=s).frequencies(128) for s in (None, scaling))
    desired = [_llama3_by_cases(float(f), 8.0, 1.0, 4.0, 8192) for f in 500_000.0 ** (-np.arange(0, 128, 2) / 128)]
    assert_close(scaled, np.array(desired, np.float32), CLOSED_FORM._replace(absolute=0))
    kept, divided = scaled == plain, np.isclose(scaled, plain / 8, rtol=1e-6)
    assert 0 < kept.sum() < 64 and 0 < divided.sum() < 64 and 0 < (~kept & ~divided).sum() < 64


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scores_depend_on_the_distance_alone(scaling):
    config = RopeConfig(scaling=scaling)
    random = np.random.default_rng(1)
    q, k = random.standard_normal((2, 1, 1, 1, HEAD_DIM)).astype(np.float32)

    def score(query: int, key: int) -> float:
        at = np.full((1, 1), query, np.int32), np.full((1, 1), key, np.int32)
        return float(np.sum(rotate(q, at[0], config) * rotate(k, at[1], config)))

    assert score(7, 3) == pytest.approx(score(107, 103), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-2)
