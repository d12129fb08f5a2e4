"""Tensor parallelism costs the textbook collectives, counted in what the TPU's compiler makes of the real decoder.

Megatron with activations split over the sequence between the layers (Korthikanti et al., 2022, arXiv:2205.05198,
section 4.2.2): a layer gathers the sequence before attention and before the feed-forward layer and scatters their sums
after, 2 all-gathers and 2 reduce-scatters forward and as many backward. The CPU's compiler writes a reduce-scatter as
an all-reduce and a slice, so the program is compiled for four chips that need not be there.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.remat import FullRemat, NoRemat
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.planning.collectives import KINDS, Collectives, collectives
from jaxtrain.planning.topology import compile_ahead_of_time, devices_of
from jaxtrain.shapes import Batch
from jaxtrain.sharding import activation_spec, shardings

REPEATS, ROWS, LENGTH, WIDTH = 3, 8, 64, 128
CONFIG = DecoderConfig(
    vocab_size=512,
    d_model=WIDTH,
    repeats=REPEATS,
    pattern=(BlockConfig(mixer=AttentionConfig(heads=8, kv_heads=4, head_dim=16), mlp=GatedMLPConfig(hidden=512)),),
    max_length=LENGTH,
    compute_dtype="bfloat16",
)


@functools.cache
def _collectives(remat) -> Collectives:
    """Compile loss and gradient with all four chips along `tensor`."""
    mesh = MeshConfig(fsdp=1, tensor=4).build(devices_of("v5e:2x2"))
    graph, (shapes, *_), (axes, *_) = abstract_model(dataclasses.replace(CONFIG, remat=remat))
    layout = shardings(axes, shapes, mesh)
    rows = NamedSharding(mesh, activation_spec(("batch", "length"), (ROWS, LENGTH), mesh))
    integers = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32, sharding=rows)
    weights = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.float32, sharding=rows)
    params = jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), shapes, layout)

    def loss(params, batch):
        return NextToken()(nnx.merge(graph, params), batch, None).minimised["nll"]

    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss), out_shardings=layout)
        compiled = compile_ahead_of_time(step.lower(params, Batch(integers, integers, weights, integers, integers)))
    return collectives(compiled.as_text())


def _by_loop(found: Collectives) -> list[dict[str, int]]:
    """Return how many collectives of each kind one layer costs, for each loop over the layers."""
    inside = [item for item in found.items if item.times == REPEATS]
    loops = dict.fromkeys(item.computation for item in inside)
    return [
        {kind: n for kind in KINDS if (n := sum(i.kind == kind for i in inside if i.computation == loop))}
        for loop in loops
    ]


TEXTBOOK = {"all-gather": 2, "reduce-scatter": 2}


def test_a_layer_costs_two_gathers_and_two_scatters_forward_and_as_many_backward():
    assert _by_loop(_collectives(NoRemat())) == [TEXTBOOK, TEXTBOOK]


def test_full_remat_costs_the_forward_collectives_again_but_the_last():
    forward, backward = sorted(_by_loop(_collectives(FullRemat())), key=lambda loop: loop["all-gather"])
    assert forward == TEXTBOOK
    assert backward == {"all-gather": 4, "reduce-scatter": 3}  # what the feed-forward layer adds is not needed again


@pytest.mark.parametrize("kind", ["all-gather", "reduce-scatter"])
def test_each_of_them_moves_one_activation(kind):
    moved = {item.bytes for item in _collectives(NoRemat()).items if item.kind == kind and item.times == REPEATS}
    assert moved == {ROWS * LENGTH * WIDTH * 2}


def test_embedding_and_head_cost_one_gather_and_one_scatter_forward_and_backward_and_a_few_numbers_a_token():
    outside = [item for item in _collectives(NoRemat()).items if item.times == 1]
    of_activations = [item.kind for item in outside if "all-reduce" not in item.kind]
    assert sorted(of_activations) == ["all-gather"] * 2 + ["reduce-scatter"] * 2
    # maximum and sum of the softmax over the vocabulary, the target's logit, and gradients of norm scales
    assert sum(item.bytes for item in outside if item.kind == "all-reduce") <= 2 * 4 * (3 * ROWS * LENGTH + 7 * WIDTH)
