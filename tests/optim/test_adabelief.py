"""AdaBelief against another package."""

from optimizer_cases import RATES, follow_golden
from tolerances import CLOSED_FORM_LAYER, assert_close

from jaxtrain.optim.adabelief import AdaBelief


def test_points_are_those_of_pytorch_optimizer():
    optimizer = AdaBelief(learning_rate=RATES, weight_decay=0.3)
    seen, desired = follow_golden("pytorch_optimizer/adabelief.npz", optimizer)
    assert_close(seen, desired, CLOSED_FORM_LAYER)
