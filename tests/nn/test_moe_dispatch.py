"""Every dispatch computes the sum of `EveryExpert`, and its gradients, on any mesh, with what it drops left out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from messages import refused
from tiny import training_batch
from tolerances import EXACT, SAME_GRADIENT, assert_close

from jaxtrain.cli.config_types import subclasses
from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import context_of
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.linear.int8 import Int8
from jaxtrain.nn.linear.lora import LoRA
from jaxtrain.nn.moe.dispatch import Capacity, Dispatch, Dropless, EveryExpert, Exchange, Materialise
from jaxtrain.nn.moe.routing import Routing
from jaxtrain.nn.moe.selections import ExpertChoice, TopK
from jaxtrain.nn.param import merge, split
from jaxtrain.sharding import constrain

WIDTH, EXPERTS, ROWS, LENGTH = 16, 8, 8, 16
BATCH = training_batch(ROWS, LENGTH, vocab_size=64)
CONTEXT = context_of(BATCH, None)
X = np.random.default_rng(0).standard_normal((ROWS, LENGTH, WIDTH)).astype(np.float32)
MIXTURE = MixtureConfig(experts=EXPERTS, top_k=2, expert=GatedMLPConfig(hidden=24))
DISPATCHES = {
    "Capacity": Capacity(factor=4.0),
    "Dropless": Dropless(pieces=4),
    "EveryExpert": EveryExpert(),
    "Exchange": Exchange(factor=1.0),  # some pairs of devices have more rows than room
    "Materialise": Materialise(slots=3),
}
OTHER_EXCHANGES = {
    "expert 8": Exchange(factor=1.0, near=4),
    "expert 4 x tensor 2": Exchange(factor=4.0, pieces=2, near=2),  # all have room
}
MESHES = {
    "one device": None,
    "expert 8": MeshConfig(expert=8, fsdp=1),
    "expert 4 x tensor 2": MeshConfig(expert=4, fsdp=1, tensor=2),
    "fsdp 2 x expert 2 x context 2": MeshConfig(fsdp=2, expert=2, context=2),
    "fsdp 2 x expert 2 x tensor 2": MeshConfig(fsdp=2, expert=2, tensor=2),
}


@functools.cache
def _found(config: MixtureConfig, mesh: str) -> tuple:
    """Return the output of a mixture, its counts, and the gradients of a sum of squares in its parameters and in x."""
    graph, model = split(config.build(WIDTH, rngs=nnx.Rngs(0)))

    def loss(params, x):
        out = merge(graph, model._replace(params=params))(constrain(x, "batch", "length", None), CONTEXT)
        y = constrain(out.y, "batch", "residual_length", None)  # both as in a block
        return jnp.sum(y**2), (y, out.sums.counts)

    take = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    if MESHES[mesh] is None:
        return jax.device_get(take(model.params, X))
    with jax.set_mesh(MESHES[mesh].build()):
        return jax.device_get(take(model.params, X))


BETWEEN_DEVICES = ("Exchange", "Materialise")  # on one device they are Dropless
WAYS = [(name, mesh) for name in DISPATCHES for mesh in MESHES if name not in BETWEEN_DEVICES or MESHES[mesh]]


@pytest.mark.parametrize(("name", "mesh"), WAYS)
def test_a_dispatch_that_drops_nothing_has_the_sums_and_gradients_of_the_definition(name, mesh):
    dispatch = OTHER_EXCHANGES.get(mesh, DISPATCHES[name]) if name == "Exchange" else DISPATCHES[name]
    desired = _found(dataclasses.replace(MIXTURE, dispatch=EveryExpert()), "one device")
    assert_close(_found(dataclasses.replace(MIXTURE, dispatch=dispatch), mesh), desired, SAME_GRADIENT)


def test_every_dispatch_is_held_to_it():
    ours = [name for name, cls in subclasses(Dispatch).items() if cls.__module__.startswith("jaxtrain.")]
    assert sorted(ours) == sorted([*DISPATCHES, "Auto"])  # which is one of the others


@pytest.mark.parametrize("mesh", ["one device", "expert 4 x tensor 2"])
def test_a_full_expert_drops_the_tokens_of_a_row_that_come_last(mesh):
    dispatch = Capacity(factor=1.0)
    (_, _), (y, counts) = _found(dataclasses.replace(MIXTURE, dispatch=dispatch), mesh)
    module, chosen = MIXTURE.build(WIDTH, rngs=nnx.Rngs(0)), np.zeros((ROWS, LENGTH, EXPERTS), np.float32)
    probabilities = np.asarray(jax.nn.softmax(X @ module.router[...]))
    for place in zip(*np.nonzero(BATCH.segment_ids), strict=True):
        chosen[place][np.argsort(-probabilities[place])[:2]] = 1
    weights, free = probabilities * chosen, np.full((ROWS, EXPERTS), LENGTH * 2 // EXPERTS)
    weights = np.divide(weights, weights.sum(-1, keepdims=True), out=np.zeros_like(weights), where=weights > 0)
    desired, dropped = np.zeros_like(X), np.zeros(EXPERTS)
    outputs = np.asarray(_alone(module))
    for row, token, expert in zip(*np.nonzero(chosen), strict=True):
        if free[row, expert]:
            free[row, expert] -= 1
            desired[row, token] += weights[row, token, expert] * outputs[expert, row, token]
        else:
            dropped[expert] += 1
    assert dropped.sum() > 5
    assert_close(y, desired, SAME_GRADIENT)
    np.testing.assert_array_equal(counts["dropped"], dropped)
    np.testing.assert_array_equal(counts["load"], chosen.sum((0, 1)))


def _alone(module) -> jax.Array:
    graph, experts = split(module.experts)
    return jax.vmap(lambda own: merge(graph, own)(X, CONTEXT).y)(experts)


OTHERS = {
    "biases": MLPConfig(hidden=24, bias=True),
    "LoRA": GatedMLPConfig(hidden=24, linear=LoRA(rank=2)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_experts_of_any_linears_are_computed_in_groups(name):
    config = dataclasses.replace(MIXTURE, expert=OTHERS[name])
    desired = _found(dataclasses.replace(config, dispatch=EveryExpert()), "one device")
    assert_close(_found(config, "one device"), desired, SAME_GRADIENT)


def test_linears_that_quantize_activations_are_refused_where_rows_are_sorted():
    config = dataclasses.replace(MIXTURE, expert=GatedMLPConfig(hidden=24, linear=Int8()))
    with refused(ValueError, "Int8()", "@EveryExpert()"):
        config.build(WIDTH, rngs=nnx.Rngs(0))(X, CONTEXT)


@pytest.mark.parametrize("changes", [{}, {"experts": 2, "zero_experts": 4, "top_k": 3}], ids=str)
def test_zero_experts_are_none_of_those_that_are_listed(changes):
    selection = TopK() if changes else ExpertChoice()
    config = dataclasses.replace(MIXTURE, **{"zero_experts": 2, "selection": selection} | changes)
    desired = _found(dataclasses.replace(config, dispatch=EveryExpert()), "one device")
    assert_close(_found(config, "one device"), desired, SAME_GRADIENT)


def test_a_model_that_decodes_drops_nothing():
    """An answer does not depend on the prompts beside it, nor on padding."""
    dense, full = (dataclasses.replace(MIXTURE, dispatch=d) for d in (Dropless(), Capacity(factor=1.0)))
    decoding = CONTEXT._replace(cache_index=jnp.int32(0))
    found, desired = (config.build(WIDTH, rngs=nnx.Rngs(0))(X, decoding) for config in (full, dense))
    assert_close(found.y, desired.y, EXACT)
    assert not found.sums.counts["dropped"].any()


@pytest.mark.parametrize("changes", [{"dispatch": Capacity()}, {"selection": ExpertChoice()}], ids=str)
def test_documents_of_which_tokens_compete_are_not_scored_together(changes):
    with refused(ValueError, str(*changes)):
        dataclasses.replace(MIXTURE, **changes).check_alone()


def test_tokens_with_any_number_of_experts_are_computed_in_groups():
    config = dataclasses.replace(MIXTURE, selection=ExpertChoice(), renormalise=False)
    desired = _found(dataclasses.replace(config, dispatch=EveryExpert()), "one device")
    assert_close(_found(config, "one device"), desired, SAME_GRADIENT)


def test_the_gradient_of_an_expert_that_no_token_asks_for_is_zero():
    module = dataclasses.replace(MIXTURE, experts=4, top_k=1).build(WIDTH, rngs=nnx.Rngs(0))
    module.router[...] = jnp.zeros((WIDTH, 4)).at[0].set(jnp.array([1.0, 2.0, -1.0, -2.0]))
    x = np.abs(X)  # so that the second expert has all tokens
    graph, model = split(module)
    gradient = jax.grad(lambda params: jnp.sum(merge(graph, model._replace(params=params))(x, CONTEXT).y))(model.params)
    for leaf in jax.tree.leaves(gradient["experts"]):
        assert np.abs(leaf[1]).min() > 0 and not np.asarray(leaf)[[0, 2, 3]].any()


def test_numbers_of_a_capacity_that_drops_from_balanced_experts_are_refused():
    with refused(ValueError, "factor=0.5"):
        Capacity(factor=0.5)


def test_places_are_at_most_the_tokens_of_a_row():
    routing = Routing(np.zeros((1, 6, 4)), np.zeros((1, 6, 4)), top_k=2, most=2)
    assert [Capacity(factor=factor).places(routing) for factor in (1.0, 1.25, 9.0)] == [3, 4, 6]


def test_an_expert_with_variables_outside_of_its_linears_is_refused_where_rows_are_sorted(normed):
    with refused(ValueError, "expert", "norm.scale", "@EveryExpert()"):
        dataclasses.replace(MIXTURE, expert=normed()).build(WIDTH, rngs=nnx.Rngs(0))(X, CONTEXT)


@pytest.fixture
def normed():
    """A feed-forward layer with a norm."""
    from jaxtrain.nn.layer import Layer, Out
    from jaxtrain.nn.norms.rms_norm import RMSNormConfig

    class Normed(Layer):
        def __init__(self, width):
            self.norm = RMSNormConfig().build(width)

        def __call__(self, x, context):
            return Out(self.norm(x))

    @dataclasses.dataclass(frozen=True)
    class NormedConfig(FeedForwardConfig):
        def build(self, d_model, *, rngs):
            return Normed(d_model)

    return NormedConfig
