"""The one table of tolerances. A row is loosened only with its reason beside it.

Absolute and relative parts are those of `numpy.testing.assert_allclose`: |actual - desired| <= absolute + relative *
|desired|. Values are float32 of order one unless a row says otherwise.
"""

from typing import NamedTuple

import jax
import numpy as np


class Tolerance(NamedTuple):
    absolute: float = 0.0
    relative: float = 0.0


EXACT = Tolerance()
SAME_LOSS_ON_ANY_MESH = Tolerance(absolute=1e-5)  # the promise to users: every step's loss, whatever the mesh
SAME_GRADIENT = Tolerance(absolute=1e-6, relative=1e-4)  # the same sums in another order
# The same sums in another order, through a few layers: 2.6e-5 was seen between logits of up to 6 with jax 0.11.2.
SAME_LOGITS = Tolerance(absolute=3e-5)
CLOSED_FORM = Tolerance(absolute=2e-6, relative=2e-6)  # one layer against its formula in float64
CLOSED_FORM_LAYER = Tolerance(absolute=1e-5)  # a whole attention or feed-forward layer against float64
SAME_RECURRENCE = Tolerance(relative=1e-6)  # cut elsewhere; the root mean square, in units of that of the result
SCHEDULE = Tolerance(relative=1e-6)  # a learning rate against its formula


def assert_close(actual, desired, tolerance: Tolerance, what: str = "") -> None:
    """Compare two trees leaf by leaf, naming the leaf that differs."""
    desired_leaves = jax.tree_util.tree_leaves_with_path(desired)
    actual_leaves = jax.tree_util.tree_leaves_with_path(actual)
    assert [path for path, _ in actual_leaves] == [path for path, _ in desired_leaves], what
    for (path, a), (_, d) in zip(actual_leaves, desired_leaves, strict=True):
        name = f"{what} {jax.tree_util.keystr(path)}".strip()
        np.testing.assert_allclose(a, d, rtol=tolerance.relative, atol=tolerance.absolute, err_msg=name)
