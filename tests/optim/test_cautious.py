"""Cautious optimizers: which elements of an update stay, how they are scaled, and what is left alone."""

import jax
import numpy as np
import pytest
from messages import refused
from optimizer_cases import DECAY, FACTS, RATE, RATES, SHAPES, build, draw_tree, follow
from tiny import vector
from tolerances import CLOSED_FORM, CLOSED_FORM_LAYER, EXACT, assert_close

from jaxtrain.optim.adafactor import Adafactor
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.adamw_8bit import AdamW8bit
from jaxtrain.optim.cautious import Cautious
from jaxtrain.optim.lamb import LAMB
from jaxtrain.optim.layer_rates import LayerRates
from jaxtrain.optim.lion import Lion
from jaxtrain.optim.lookahead import Lookahead
from jaxtrain.optim.madgrad import MADGRAD
from jaxtrain.optim.muon import Muon
from jaxtrain.optim.sam import SAM
from jaxtrain.optim.schedule_free import ScheduleFree
from jaxtrain.optim.skip_spikes import SkipSpikes

ADAMW = AdamW(learning_rate=RATES, weight_decay=DECAY)


def _float64_adamw(params: dict, gradients: list[dict]) -> list[dict]:
    """Return the parameters behind each step of the authors' C-AdamW, a layer at a time."""
    seen = []
    w = {name: np.float64(x) for name, x in params.items()}
    m, v = ({name: np.zeros(x.shape) for name, x in w.items()} for _ in range(2))
    for t, gradient in enumerate(gradients, 1):
        for name, g in gradient.items():
            for layer in range(len(g)):
                own, slope = (name, layer), np.float64(g[layer])
                m[name][layer] += (1 - ADAMW.b1) * (slope - m[name][layer])
                v[name][layer] += (1 - ADAMW.b2) * (slope**2 - v[name][layer])
                u = m[name][layer] / (1 - ADAMW.b1**t) / (np.sqrt(v[name][layer] / (1 - ADAMW.b2**t)) + ADAMW.epsilon)
                mask = m[name][layer] * slope > 0
                decay = DECAY * w[name][layer] if FACTS[own[0]].decays else 0.0
                w[name][layer] -= RATE * (u * mask / max(mask.mean(), 1e-3) + decay)
        seen.append({name: x.copy() for name, x in w.items()})
    return seen


def test_it_is_the_adamw_of_the_authors_layer_by_layer_with_decay_outside_of_the_mask():
    params, gradients = draw_tree(0), [draw_tree(seed) for seed in range(1, 7)]
    seen = follow(build(Cautious(optimizer=ADAMW)), params, gradients, lambda _, params: params)
    desired = _float64_adamw(params, gradients)
    plain = follow(build(ADAMW), params, gradients, lambda _, params: params)
    for step in range(6):
        assert_close(seen[step], desired[step], CLOSED_FORM_LAYER, f"step {step}")
    assert not np.allclose(seen[-1]["up"], plain[-1]["up"], atol=RATE)


@pytest.mark.parametrize("optimizer", [Lion, Muon, AdamW8bit], ids=lambda cls: cls.__name__)
def test_any_optimizer_moves_where_it_agrees_with_the_gradient_or_not_at_all(optimizer):
    inner = optimizer(learning_rate=RATES, weight_decay=0.0)
    params, large = draw_tree(0), jax.tree.map(lambda g: 100 * g, draw_tree(1))
    gradients = [large, draw_tree(2)]  # the momentum is that of the first
    *_, before, after = [params, *follow(build(Cautious(optimizer=inner)), params, gradients, lambda _, params: params)]
    moved = jax.tree.map(lambda new, old: np.asarray(new) - np.asarray(old), after, before)
    for name, move in moved.items():
        assert (move * gradients[-1][name] <= 0).all(), name
        assert 0 < (move == 0).mean() < 1, name


def test_where_all_signs_agree_the_update_is_that_of_the_optimizer():
    inner = Adafactor(learning_rate=RATES)  # which has no momentum
    params, gradients = draw_tree(0), [draw_tree(seed) for seed in (1, 2, 3)]
    seen, plain = (
        follow(build(tx), params, gradients, lambda *seen: seen) for tx in (Cautious(optimizer=inner), inner)
    )
    assert_close(seen, plain, EXACT)


def test_a_tensor_in_which_few_agree_is_scaled_by_a_thousand_at_most():
    params = {"w": np.zeros(4000, np.float32)}
    against = np.full(4000, -1e-3, np.float32)
    against[0] = 1.0  # the one element whose momentum, made by ones, keeps its sign
    tx = build(Cautious(optimizer=Lion(learning_rate=RATES, weight_decay=0.0)), axes={"w": vector("width")})
    first, second = follow(
        tx, params, [{"w": np.ones(4000, np.float32)}, {"w": against}], lambda _, params: params["w"]
    )
    assert_close((second - first)[:2], np.float32([-1000 * RATE, 0.0]), CLOSED_FORM)


def test_the_smallest_numbers_have_signs():
    params, tiny = draw_tree(0), {name: np.full(shape, 1e-30, np.float32) for name, shape in SHAPES.items()}
    [seen] = follow(
        build(Cautious(optimizer=Lion(learning_rate=RATES, weight_decay=0.0))), params, [tiny], lambda _, p: p
    )
    assert_close(seen, jax.tree.map(lambda w: w - np.float32(RATE), params), EXACT)


def test_the_state_is_that_of_the_optimizer_within():
    states = [jax.eval_shape(build(optimizer).init, draw_tree(0)) for optimizer in (Cautious(optimizer=ADAMW), ADAMW)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_it_goes_inside_of_sam_and_around_no_average():
    within, params, gradients = SAM(optimizer=Cautious(optimizer=ADAMW)), draw_tree(0), [draw_tree(1), draw_tree(2)]
    seen, own = (follow(build(tx), params, gradients, lambda _, w: w) for tx in (within, within.optimizer))
    assert_close(seen, own, EXACT)  # of a gradient that is the same everywhere
    with refused(ValueError, "optimizer=SAM", "SAM(optimizer=Cautious(...))"):
        Cautious(optimizer=SAM(optimizer=ADAMW))
    with refused(ValueError, "optimizer=ScheduleFree", "average"):
        Cautious(optimizer=ScheduleFree(learning_rate=RATES))
    with refused(ValueError, "weight_decay=0.01", "LAMB"):
        Cautious(optimizer=LAMB(learning_rate=RATES))
    assert Cautious(optimizer=LAMB(learning_rate=RATES, weight_decay=0.0)).weight_decay == 0.0


def test_twice_cautious_decays_once():
    tx, params = build(Cautious(optimizer=Cautious(optimizer=ADAMW))), draw_tree(0)
    [seen] = follow(tx, params, [jax.tree.map(np.zeros_like, params)], lambda _, params: params)
    assert_close(seen["up"], params["up"] * np.float32(1 - RATE * DECAY), CLOSED_FORM)
    assert_close(seen["scale"], params["scale"], EXACT)


@pytest.mark.parametrize("wrapper", [LayerRates, SkipSpikes], ids=lambda cls: cls.__name__)
def test_what_makes_less_of_a_step_goes_around_it(wrapper):
    with refused(ValueError, f"optimizer={wrapper.__name__}", f"{wrapper.__name__}(optimizer=Cautious(...))"):
        Cautious(optimizer=wrapper(optimizer=ADAMW))


@pytest.mark.parametrize("wrapper", [Cautious, LayerRates, Lookahead], ids=lambda cls: cls.__name__)
def test_no_part_is_taken_of_an_update_to_a_point_that_is_kept(wrapper):
    with refused(ValueError, "optimizer=MADGRAD", wrapper.__name__):
        wrapper(optimizer=MADGRAD(learning_rate=RATES))
