"""The one table of tolerances. A row is loosened only with its reason beside it.

Gradients, logits and whatever else sums many terms are held to the norm of their leaf: where the terms of an element
nearly cancel, its error is of the size of the terms. How large depends on the order of the sums, which every processor,
mesh and version has its own of. tests/test_tolerances.py plants faults that these rows must notice.
"""

import math
from typing import NamedTuple

import jax
import numpy as np


class Tolerance(NamedTuple):
    """|actual - desired| <= absolute + relative |desired| for each element, as of `numpy.testing.assert_allclose`.

    Values are float32 of order one unless a row says otherwise.
    """

    absolute: float = 0.0
    relative: float = 0.0

    def check(self, actual: np.ndarray, desired: np.ndarray, name: str) -> None:
        np.testing.assert_allclose(actual, desired, rtol=self.relative, atol=self.absolute, err_msg=name)


class OfNorm(NamedTuple):
    """|actual - desired| <= relative |desired|, both Euclidean norms over the whole leaf."""

    relative: float

    def check(self, actual: np.ndarray, desired: np.ndarray, name: str) -> None:
        error = error_of_norm(actual, desired)
        assert error <= self.relative, (
            f"{name}: an error of {error:.3g} of its norm, where {self.relative:g} is allowed"
        )


def error_of_norm(actual: np.ndarray, desired: np.ndarray) -> float:
    """Return |actual - desired| in units of |desired|; 0 where both are 0."""
    actual, desired = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
    assert actual.shape == desired.shape, f"{actual.shape} is not {desired.shape}"
    error, norm = float(np.linalg.norm(actual - desired)), float(np.linalg.norm(desired))
    if error == 0:
        return 0.0
    return error / norm if norm else math.inf


EXACT = Tolerance()
SAME_LOSS_ON_ANY_MESH = Tolerance(absolute=1e-5)  # the promise to users: every step's loss, whatever the mesh
# Four steps with activations in int8: an ulp moves some to the next code. 1.7e-3 was seen on a mesh, and 1.9e-3 on one
# device whose parameters are an ulp larger (docs/log.md).
SAME_LOSS_IN_CODES = Tolerance(absolute=6e-3)
# The same sums in another order, of one operation or a model of two layers: 3.6e-7 was seen, with AVX2 and SSE4.2.
SAME_SUMS = OfNorm(2e-6)
EIGHT_BITS = OfNorm(2e-2)  # a product of activations and weights in blocks of int8; 8e-3 was seen
FOUR_BITS = OfNorm(0.15)  # weights in blocks of NF4
SAME_GRADIENT = OfNorm(4e-5)  # the same through many layers; 9.4e-6 was seen, in a hybrid with SSE4.2
SAME_LOGITS = OfNorm(1e-5)  # the same sums in another order, through a few layers; 1.3e-6 was seen, with AVX2
CLOSED_FORM = Tolerance(absolute=2e-6, relative=2e-6)  # one layer against its formula in float64
CLOSED_FORM_LAYER = Tolerance(absolute=1e-5)  # a whole attention or feed-forward layer against float64
SAME_RECURRENCE = OfNorm(2e-6)  # cut elsewhere; 4.2e-7 was seen, with AVX2 and SSE4.2
SAME_UPDATE = OfNorm(1e-6)  # of a few optimizer steps, in another form
# Of matrix products for one layer, and batched over a stack: 1.25e-6 was seen of Muon, with AVX-512.
SAME_BATCHED_UPDATE = OfNorm(4e-6)
SAME_STEPS_ON_ANY_MESH = OfNorm(1e-5)  # two steps of an optimizer from the same gradients; sums in another order
RECTIFIER = Tolerance(relative=1e-6)  # of RAdam, and what it is found from, against float64
# Points and rates behind 24 steps whose lengths are found from quotients of sums over all steps before.
FOUND_RATE = Tolerance(absolute=1e-5, relative=1e-4)
SCALES = Tolerance(relative=1e-6)  # of quantized blocks
# The numbers that codes stand for: two products, which XLA of jax 0.11.2 puts in another order, and with an expansion
# exp2(k log2 y) with |k log2 y| up to 100, in which half an ulp is 4e-6; 1.6e-7 and 1.9e-6 were seen.
SAME_NUMBERS = Tolerance(relative=2.4e-7)
SAME_EXPANDED_NUMBERS = Tolerance(relative=8e-6)
AVERAGE = Tolerance(absolute=1e-6)  # of the parameters of a dozen steps
SHUT_GATES = Tolerance(absolute=1e-4)  # a recurrence whose decays are e^-20 or 1, against float64
CHANCES = Tolerance(absolute=1e-6)  # probabilities that add up to 1
# Probabilities from sums of log-probabilities, and from distances of embeddings over a temperature of 0.3, in float32.
POSTERIOR = Tolerance(relative=1e-4)
BY_DISTANCE = Tolerance(relative=1e-3)
SCHEDULE = Tolerance(relative=1e-6)  # a learning rate against its formula


def assert_close(actual, desired, tolerance: Tolerance | OfNorm, what: str = "") -> None:
    """Compare two trees leaf by leaf, naming the leaf that differs."""
    desired_leaves = jax.tree_util.tree_leaves_with_path(desired)
    actual_leaves = jax.tree_util.tree_leaves_with_path(actual)
    assert [path for path, _ in actual_leaves] == [path for path, _ in desired_leaves], what
    for (path, a), (_, d) in zip(actual_leaves, desired_leaves, strict=True):
        name = f"{what} {jax.tree_util.keystr(path)}".strip()
        tolerance.check(a, d, name)


def largest_error(actual, desired) -> float:
    """Return that of the worst leaf of two trees, in units of its norm; NaN where something is."""
    return float(np.max(jax.tree.leaves(jax.tree.map(error_of_norm, actual, desired))))
