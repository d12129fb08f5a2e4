"""Rows and columns of a parameter by the names of its axes."""

import pytest
from tiny import matrix

from jaxtrain.optim.matrix import matrix_shape

SIZES = {"repeats": 3, "embed": 32, "heads": 4, "kv_heads": 2, "head_dim": 6, "mlp": 48, "rank": 5, "vocab": 64}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("embed", "heads", "head_dim"), (32, 24)),
        (("heads", "head_dim", "embed"), (24, 32)),
        (("embed", "kv_heads"), (32, 2)),
        (("rank", "kv_heads", "head_dim"), (5, 12)),
        (("embed", "mlp"), (32, 48)),
        (("mlp", "embed"), (48, 32)),
        (("vocab", "embed"), (64, 32)),
        (("kv_heads", "head_dim"), (12,)),
        (("head_dim",), (6,)),
        (("mlp",), (48,)),
        (("a name of tomorrow",), (7,)),
    ],
)
def test_heads_and_their_channels_are_one_side(names, expected):
    shape = tuple(SIZES.get(name, 7) for name in names)
    axes = matrix(*names)
    assert matrix_shape(axes, shape) == matrix_shape(axes.stacked(), shape) == expected
