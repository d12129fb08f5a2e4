"""Rotary positions against complex multiplication in float64, and the scalings against those of `transformers`."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import refused
from tolerances import CLOSED_FORM, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.nn.positions import InterleavedRotary, PartialRotary, Rotary
from jaxtrain.nn.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    YarnScaling,
)
from jaxtrain.surgery.huggingface.llama_like import DEFAULTS
from jaxtrain.surgery.huggingface.rope import RopeKeys, read_rope
from jaxtrain.surgery.huggingface.settings import Settings

HEAD_DIM = 16
LONG_ROPE = LongRopeScaling(
    short=tuple(1.0 + 0.1 * i for i in range(8)),
    long=tuple(1.0 + i for i in range(8)),
    original_length=32,
    attention_factor=1.2,
)
YARN = YarnScaling(factor=4.0, original_length=32, fast=4.0)
CONFIGS = {
    "plain": Rotary(theta=500.0),
    "linear": Rotary(theta=500.0, scaling=LinearScaling(factor=4.0)),
    "llama3": Rotary(theta=500.0, scaling=Llama3Scaling(factor=8.0, original_length=64)),
    "dynamic": Rotary(theta=500.0, scaling=DynamicScaling(factor=2.0, original_length=16)),
    "yarn": Rotary(theta=500.0, scaling=YARN),
    "longrope": Rotary(theta=500.0, scaling=LONG_ROPE),
    "part of a head": PartialRotary(theta=500.0, fraction=0.75),
    "neighbours": InterleavedRotary(theta=500.0),
    "neighbours in part of a head": InterleavedRotary(theta=500.0, fraction=0.5, scaling=YARN),
}
LENGTH = 40


@pytest.mark.parametrize("name", CONFIGS)
def test_rotation_is_multiplication_by_a_complex_number(name):
    config, K = CONFIGS[name], CONFIGS[name].rotated(HEAD_DIM)
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 6, 3, HEAD_DIM)).astype(np.float32)
    positions = random.integers(0, LENGTH, (2, 6)).astype(np.int32)
    first, second = (
        (x[..., 0:K:2], x[..., 1:K:2])
        if isinstance(config, InterleavedRotary)
        else (x[..., : K // 2], x[..., K // 2 : K])
    )
    z = first + 1j * second.astype(np.float64)
    plain = np.array([500.0 ** (-2 * i / K) for i in range(K // 2)])
    scaling = config.scaling
    angle = positions[:, :, None, None] * (plain if scaling is None else scaling(plain, LENGTH))
    z = z * np.exp(1j * angle) * (1.0 if scaling is None else scaling.amplitude())
    pairs = np.stack([z.real, z.imag], -1).reshape(*z.shape[:-1], K)
    turned = pairs if isinstance(config, InterleavedRotary) else np.concatenate([z.real, z.imag], -1)
    desired = np.concatenate([turned, x[..., K:]], -1)
    assert_close(config.rotate(x, positions, length=LENGTH), desired, CLOSED_FORM._replace(absolute=1e-5))


GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rope.json").read_text())


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_scaled_frequencies_are_those_of_transformers(name):
    case = GOLDEN["cases"][name]
    given = {"max_position_embeddings": GOLDEN["max_position_embeddings"], "rope_parameters": case["settings"]}
    rope = read_rope(Settings(given, DEFAULTS), RopeKeys())
    found = rope.frequencies(GOLDEN["head_dim"], case["length"])
    assert_close(found, np.array(case["frequencies"], np.float32), CLOSED_FORM._replace(absolute=0))
    assert rope.scaling.amplitude() == pytest.approx(case["factor"], rel=1e-12)


def test_llama3_scaling_keeps_fast_pairs_divides_slow_ones_and_blends_between():
    scaling = Llama3Scaling()
    plain, scaled = (Rotary(theta=500_000.0, scaling=s).frequencies(128, 1) for s in (None, scaling))
    kept, divided = scaled == plain, np.isclose(scaled, plain / 8, rtol=1e-6)
    assert 0 < kept.sum() < 64 and 0 < divided.sum() < 64 and 0 < (~kept & ~divided).sum() < 64


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_depend_on_the_distance_alone(name):
    config = CONFIGS[name]
    random = np.random.default_rng(1)
    q, k = random.standard_normal((2, 1, 1, 1, HEAD_DIM)).astype(np.float32)

    def score(query: int, key: int) -> float:
        at = np.full((1, 1), query, np.int32), np.full((1, 1), key, np.int32)
        return float(np.sum(config.rotate(q, at[0], length=200) * config.rotate(k, at[1], length=200)))

    assert score(7, 3) == pytest.approx(score(107, 103), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-2)


@pytest.mark.parametrize(
    "scaling", [DynamicScaling(factor=2.0, original_length=32), LONG_ROPE], ids=["dynamic", "long"]
)
def test_rows_of_the_original_length_are_the_last_that_are_not_stretched(scaling):
    rope = Rotary(scaling=scaling)
    at_most, original, beyond = (rope.frequencies(HEAD_DIM, length) for length in (8, 32, 33))
    assert (at_most == original).all()
    assert (beyond[1:] < original[1:]).all()


REFUSED = {
    "no part": (lambda: PartialRotary(fraction=0.0), ("fraction=0.0", 1)),
    "a part that is all": (lambda: PartialRotary(fraction=1.0), ("fraction=1.0", "take Rotary")),
    "more than a head": (lambda: InterleavedRotary(fraction=1.5), ("fraction=1.5", 1)),
    "a ramp backwards": (
        lambda: YarnScaling(factor=2.0, original_length=32, fast=0.5),
        ("fast=0.5", "slow=1.0"),
    ),
    "shrunk": (lambda: DynamicScaling(factor=0.5, original_length=32), ("factor=0.5", 1)),
    "a factor of 0": (
        lambda: LongRopeScaling(short=(0.0,), long=(1.0,), original_length=8, attention_factor=1.0),
        ("short=(0.0,)", "above 0"),
    ),
    "factors of two sizes": (
        lambda: LongRopeScaling(short=(1.0,), long=(1.0, 2.0), original_length=8, attention_factor=1.0),
        ("long has 2 factors", "short 1"),
    ),
    "a head of one pair": (lambda: Rotary(scaling=YARN).frequencies(2, 8), ("YarnScaling", 4)),
    "a head of one pair that grows": (
        lambda: Rotary(scaling=DynamicScaling(factor=2.0, original_length=4)).frequencies(2, 8),
        ("DynamicScaling", 4),
    ),
    "pairs of one speed": (lambda: Rotary(theta=1.0, scaling=YARN).frequencies(8, 8), ("theta=1.0",)),
    "factors of another head": (lambda: Rotary(scaling=LONG_ROPE).frequencies(8, 8), (8, 4, "one factor a pair")),
    "an angle": (lambda: Rotary(theta=0.0), ("theta=0.0",)),
}


@pytest.mark.parametrize("make, facts", REFUSED.values(), ids=REFUSED)
def test_positions_that_cannot_be_are_refused(make, facts):
    with refused(ValueError, *facts):
        make()


def test_angles_are_of_the_paper():
    """A pair turns by one radian a position where i = 0, and by 1/theta of it almost where i = K/2 - 1."""
    frequencies = Rotary(theta=10_000.0).frequencies(128, 1)
    assert frequencies[0] == 1.0
    assert frequencies[-1] == pytest.approx(10_000.0 ** (-126 / 128), rel=1e-6)
    assert math.isclose(frequencies[32], 0.01, rel_tol=1e-6)


def test_one_cpu_computes_sines_once_and_other_meshes_compile_what_they_did():
    x, positions = jax.ShapeDtypeStruct((2, 6, 4, HEAD_DIM), "float32"), jax.ShapeDtypeStruct((2, 6), "int32")
    gradient = jax.jit(jax.grad(lambda x, at: jnp.sum(Rotary().rotate(x, at, length=LENGTH) ** 3)))
    texts = {}
    for devices in (1, 2):
        with jax.set_mesh(MeshConfig().build(jax.devices()[:devices])):
            texts[devices] = gradient.lower(x, positions)
    assert texts[1].compile().as_text().count(" cosine(") == 1
    assert "optimization_barrier" not in texts[2].as_text()
