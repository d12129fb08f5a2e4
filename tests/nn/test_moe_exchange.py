"""What moves between devices: counted in compiled text and in traced equations, against closed forms."""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxpr_dots import equations
from messages import check, refused
from tiny import training_batch
from tolerances import SAME_SUMS, assert_close

from jaxtrain.cli.config_file import load
from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import context_of
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.feed_forward.sigmoid_gated import SigmoidGatedConfig
from jaxtrain.nn.moe.dispatch import Auto, Capacity, Dropless, Exchange, Materialise
from jaxtrain.nn.moe.dispatch.all_to_all import all_to_all
from jaxtrain.nn.moe.dispatch.region import Load, load_of
from jaxtrain.nn.param import merge, split
from jaxtrain.nn.remat import FullRemat, NoRemat, SaveExchanged
from jaxtrain.planning.collectives import collectives
from jaxtrain.planning.topology import compile_ahead_of_time, devices_of
from jaxtrain.sharding import constrain

CONFIGS = Path(__file__).parents[2] / "configs"
WIDTH, EXPERTS, TOP_K, ROWS, LENGTH = 16, 8, 2, 8, 16
MIXTURE = MixtureConfig(experts=EXPERTS, top_k=TOP_K, expert=MLPConfig(hidden=24))
X = np.random.default_rng(0).standard_normal((ROWS, LENGTH, WIDTH)).astype(np.float32)


def _layer(config: MixtureConfig, length: int):
    """Return a function of parameters and tokens, and its arguments."""
    graph, model = split(config.build(WIDTH, rngs=nnx.Rngs(0)))
    context = context_of(training_batch(ROWS, length, vocab_size=64), None)

    def layer(params, x):
        y = merge(graph, model._replace(params=params))(constrain(x, "batch", "length", None), context).y
        return constrain(y, "batch", "residual_length", None)

    return layer, (model.params, jnp.asarray(X[:, :length]))


def _compiled(function, arguments, mesh: MeshConfig):
    """Return a compiled program and its collectives between several devices."""
    devices = jax.devices()[: math.prod(dataclasses.astuple(mesh))]
    with jax.set_mesh(mesh.build(devices)):
        program = jax.jit(function).lower(*arguments).compile()
    return program, [item for item in collectives(program.as_text()).items if item.group > 1]


def test_an_exchange_sends_each_chosen_token_once_each_way_and_nothing_for_experts_that_all_have():
    config = dataclasses.replace(MIXTURE, dispatch=Exchange(factor=1.0), zero_experts=2, shared=MLPConfig(hidden=8))
    layer, arguments = _layer(config, LENGTH)
    gradient = jax.grad(lambda *of: jnp.sum(layer(*of) ** 2), argnums=(0, 1))
    _, moved = _compiled(gradient, arguments, MeshConfig(expert=8, fsdp=1))
    tokens = [item for item in moved if item.kind == "all-to-all" and "f32" in item.shape and not item.unbounded]
    n, held = ROWS * LENGTH // 8, sum(item.bytes for item in tokens)
    assert len(tokens) == 4 and {item.group for item in tokens} == {8}
    assert held * 7 // 8 == 2 * (2 * n * TOP_K * WIDTH * 7 // 8 * 4)  # 2 n k d (X - 1) / X values each way
    gathered = [item.shape for item in moved if item.kind not in ("all-to-all", "all-reduce")]
    assert gathered == ["f32[8,16,10]"]  # the scores to choose by, since XLA for CPU does not partition top-k
    in_loops = [item for item in moved if item.unbounded]
    # Forward; backward the same again, and two of gradients.
    assert {item.kind for item in in_loops} == {"all-to-all"} and len(in_loops) == 2 + 4


@pytest.mark.parametrize("topology", ["v5e:2x4", "h100:1x8"])
def test_compiled_for_accelerators_it_moves_the_bytes_of_the_closed_form(topology):
    config = dataclasses.replace(MIXTURE, dispatch=Exchange(factor=1.0), shared=MLPConfig(hidden=8))
    layer, arguments = _layer(config, LENGTH)
    mesh = MeshConfig(expert=8, fsdp=1).build(devices_of(topology))
    whole = NamedSharding(mesh, P())
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=whole), arguments)
    gradient = jax.grad(lambda *of: jnp.sum(layer(*of) ** 2), argnums=(0, 1))
    with jax.set_mesh(mesh):
        text = compile_ahead_of_time(jax.jit(gradient).lower(*shapes)).as_text()
    moved = [item for item in collectives(text).items if item.group > 1 and not item.unbounded]
    tokens = [item for item in moved if item.kind == "all-to-all" and "bf16" in item.shape]
    n, held = ROWS * LENGTH // 8, sum(item.bytes for item in tokens)
    assert len(tokens) == 4 and {item.group for item in tokens} == {8}
    assert held * 7 // 8 == 2 * (2 * n * TOP_K * WIDTH * 7 // 8 * 2)  # 2 n k d (X - 1) / X values each way
    assert "collective-permute" not in {item.kind for item in moved}


def test_hops_by_the_speed_of_links_bring_the_same_as_one():
    parts = np.arange(8 * 8 * 3.0).reshape(64, 3)
    mesh = MeshConfig(expert=4, tensor=2, fsdp=1).build()
    rows = P(("tensor", "expert"))

    def swapped(near: int) -> np.ndarray:
        swap = functools.partial(all_to_all, axes=("tensor", "expert"), near=near)
        with jax.set_mesh(mesh):
            return np.asarray(jax.jit(jax.shard_map(swap, in_specs=rows, out_specs=rows))(parts))

    desired = parts.reshape(8, 8, 3).swapaxes(0, 1).reshape(64, 3)
    for near in (1, 2, 4):
        np.testing.assert_array_equal(swapped(near), desired)
    with refused(ValueError, "near=3", "mesh.expert=4"):
        swapped(3)


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_no_piece_waits_for_what_comes_of_another(pieces):
    """Of the all-to-alls of tokens, one depends on none and one on that alone, in every piece."""
    config = dataclasses.replace(MIXTURE, dispatch=Exchange(factor=8.0, pieces=pieces))
    layer, arguments = _layer(config, LENGTH)
    with jax.set_mesh(MeshConfig(expert=8, fsdp=1).build()):
        traced = equations(jax.make_jaxpr(layer)(*arguments).jaxpr)
    region = next(equation for equation in traced if equation.primitive.name == "shard_map")
    before: dict = {}  # of each variable, the all-to-alls of tokens that it depends on
    found = []
    for equation in region.params["jaxpr"].eqns:
        needs = set().union(*(before.get(var, set()) for var in equation.invars if not hasattr(var, "val")))
        if equation.primitive.name == "all_to_all" and equation.invars[0].aval.dtype == np.float32:
            found.append(len(needs))
            needs = needs | {len(found)}
        before |= dict.fromkeys(equation.outvars, needs)
    assert sorted(found) == [0] * pieces + [1] * pieces


@pytest.mark.parametrize(("policy", "again"), [(NoRemat(), 0), (SaveExchanged(), 0), (FullRemat(), 3)], ids=str)
def test_what_was_received_and_saved_is_not_sent_again(policy, again):
    """Full remat sends counts, tokens and results a second time."""
    layer, arguments = _layer(dataclasses.replace(MIXTURE, dispatch=Exchange(factor=8.0)), LENGTH)
    gradient = jax.grad(lambda *of: jnp.sum(policy.wrap(layer)(*of) ** 2), argnums=(0, 1))
    with jax.set_mesh(MeshConfig(expert=8, fsdp=1).build()):
        traced = [equation.primitive.name for equation in equations(jax.make_jaxpr(gradient)(*arguments).jaxpr)]
    assert traced.count("all_to_all") == 1 + 2 + 2 + again  # of counts; of tokens and results, and their gradients


def test_of_devices_with_the_same_tokens_each_sends_its_share():
    """`tensor` does not divide the length, so its devices have the same tokens."""
    length, mesh = LENGTH - 1, MeshConfig(expert=4, tensor=2, fsdp=1)
    layer, arguments = _layer(dataclasses.replace(MIXTURE, dispatch=Exchange(factor=1.0)), length)
    program, moved = _compiled(layer, arguments, mesh)
    sent, back = (i for i in moved if i.kind == "all-to-all" and "f32" in i.shape and not i.unbounded)
    n = ROWS * length // 4
    assert sent.bytes == back.bytes == 4 * math.ceil(n * TOP_K / 4 / 2) * WIDTH * 4
    desired = _layer(MIXTURE, length)[0](*arguments)
    assert_close(np.asarray(program(*arguments)), np.asarray(desired), SAME_SUMS)


@pytest.mark.parametrize("dispatch", [Dropless(), Exchange()], ids=str)
def test_experts_on_the_tensor_axis_need_one_all_reduce(dispatch):
    """Pipeline MoE. Devices have the same tokens, each computes those of its experts, and the sum combines them."""
    length = LENGTH - 1
    layer, arguments = _layer(dataclasses.replace(MIXTURE, dispatch=dispatch), length)
    program, moved = _compiled(layer, arguments, MeshConfig(tensor=4, fsdp=1))
    assert [(item.kind, item.bytes) for item in moved] == [("all-reduce", 2 * ROWS * length * WIDTH * 4)]
    desired = _layer(MIXTURE, length)[0](*arguments)
    assert_close(np.asarray(program(*arguments)), np.asarray(desired), SAME_SUMS)


def test_what_dispatches_say_they_send_is_that_of_the_closed_forms():
    over_16 = Load(tokens=64, width=8, top_k=2, experts=4, apart=16, alike=1)
    assert Exchange(factor=1.0).sent(over_16) == 2 * 64 * 2 * 8 * 15 // 16
    assert Dropless().sent(over_16) == 2 * 64 * 8 * 15
    alike = over_16._replace(apart=1, alike=4)
    assert Exchange().sent(alike) == Dropless().sent(alike) == 2 * 64 * 8 * 3 // 4
    both = over_16._replace(apart=4, alike=2)
    assert Exchange(factor=1.0).sent(both) == 2 * (64 * 2 // 2) * 8 * 3 // 4 + 64 * 8
    assert Dropless().sent(both) == 2 * 64 * 8 * 3 + 64 * 8


def test_the_way_that_sends_less_is_taken():
    few, many = (load_of((8, 16, 8), 64, 4, _mesh(expert=size)) for size in (2, 8))
    assert few == Load(tokens=8 * 16 // 2, width=8, top_k=4, experts=32, apart=2, alike=1)
    assert Auto().chosen(few) == Dropless() and Auto().chosen(many) == Exchange()
    assert Auto().sent(many) == Exchange().sent(many)


def _mesh(**sizes: int) -> jax.sharding.AbstractMesh:
    return jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))


def test_a_run_says_which_way_it_takes_and_why():
    changes = ["mesh.expert=8", "model.pattern[0].mlp.dispatch=@Auto()"]
    (remark,) = load(CONFIGS / "moe_tiny.gin", changes).config.remarks(8)
    check(remark, "dispatch=@Auto()", "Exchange(factor=1.25, pieces=1, near=1)")


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        (["mesh.expert=8", "model.pattern[0].mlp.experts=6"], ("experts=6", "mesh.expert=8")),
        (["mesh.expert=8", "model.pattern[0].mlp.dispatch=@Exchange(near=3)"], ("near=3", "mesh.expert=8")),
        (["mesh.expert=8", "model.pattern[0].mlp.dispatch=@Materialise(slots=1,rest=@Exchange(near=5))"], ("near=5",)),
        (["mesh.expert=8", "model.pattern[0].mlp.dispatch=@Auto(ways=(@Exchange(near=6),))"], ("near=6",)),
        (["mesh.expert=8", "model.pattern[0].mlp=@FastFeedForwardConfig(levels=2,hardening=0.1)"], ("levels=2", 4)),
    ],
    ids=["experts", "near", "near of the rest", "near of a choice", "leaves"],
)
def test_experts_that_a_mesh_cannot_split_are_refused_before_anything_is_built(changes, facts, monkeypatch):
    monkeypatch.delattr("jaxtrain.config.abstract_model")
    if "FastFeedForward" in changes[1]:
        changes = [*changes, "model.pattern[0].mlp.leaf=@GatedMLPConfig(hidden=8)"]
    with refused(ValueError, "model.pattern[0].mlp", *facts):
        load(CONFIGS / "moe_tiny.gin", changes).config.check_devices(8)


def test_axes_that_do_not_divide_the_width_together_are_refused_by_their_keys():
    """Each of them divides it."""
    config = load(CONFIGS / "moe_tiny.gin", ["mesh.expert=8", "model.d_model=32", "phases[0].batch_size=64"]).config
    with refused(ValueError, "model.d_model=32", "mesh.fsdp=8", "mesh.expert=8"):
        config.check_devices(64)


def test_a_run_says_what_of_an_exchange_is_unused_where_nothing_is_exchanged():
    """On one device, and behind a gate as well; without such numbers, and over devices with experts, nothing."""
    way, shape = Exchange(pieces=2, near=4), (8, 16, 8)
    mixture = dataclasses.replace(MIXTURE, dispatch=way)
    for layer in (mixture, SigmoidGatedConfig(layer=mixture)):
        check(layer.remark(shape, _mesh(fsdp=2), 4) or "", "dispatch=@Exchange()", "pieces=2", "near=4")
        assert layer.remark(shape, _mesh(expert=4), 4) is None
    assert dataclasses.replace(MIXTURE, dispatch=Exchange()).remark(shape, _mesh(fsdp=2), 4) is None


def test_a_choice_that_would_change_the_result_is_refused():
    with refused(ValueError, "Capacity(factor=1.25)", "ways"):
        Auto(ways=(Dropless(), Capacity()))
    with refused(ValueError, "Materialise(slots=2", "ways"):
        Auto(ways=(Dropless(), Materialise(slots=2)))
    with refused(ValueError, "ways=()"):
        Auto(ways=())


def test_a_room_below_that_of_balanced_experts_is_refused():
    with refused(ValueError, "factor=0.9"):
        Exchange(factor=0.9)
