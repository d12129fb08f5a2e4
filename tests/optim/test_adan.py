"""Adan against another package."""

from optimizer_cases import RATES, follow_golden
from tolerances import CLOSED_FORM_LAYER, assert_close

from jaxtrain.optim.adan import Adan


def test_points_are_those_of_optimi():
    seen, desired = follow_golden("optimi/adan.npz", Adan(learning_rate=RATES, weight_decay=0.0))
    assert_close(seen, desired, CLOSED_FORM_LAYER)
