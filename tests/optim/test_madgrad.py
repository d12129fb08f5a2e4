"""MADGRAD against the package of its authors."""

from optimizer_cases import RATES, follow_golden
from tolerances import CLOSED_FORM_LAYER, assert_close

from jaxtrain.optim.madgrad import MADGRAD


def test_points_are_those_of_the_authors_package_with_decay():
    seen, desired = follow_golden("madgrad/madgrad.npz", MADGRAD(learning_rate=RATES, weight_decay=0.3))
    assert_close(seen, desired, CLOSED_FORM_LAYER)
