"""AdamW with 8-bit moments in training: what is quantized, how it is laid out, and that it changes with no mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from jaxtrain_kernels.block_quant import QuantizedArray
from messages import refused
from tiny import bytes_of, variant
from tolerances import CLOSED_FORM, EXACT, assert_close

from jaxtrain.cli.config_file import load
from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.adamw_8bit import AdamW8bit
from jaxtrain.optim.moments.float8 import Float8Moments
from jaxtrain.optim.schedules import Constant
from jaxtrain.planning.collectives import collectives
from jaxtrain.shapes import ModelState
from jaxtrain.sharding import shardings
from jaxtrain.train.checkpoint import Checkpoints, Snapshot
from jaxtrain.train.state import TrainState, state_of, state_shardings

RATES = Constant(peak=1e-2)
MODEL = variant(
    d_model=64,
    vocab_size=256,
    pattern=(BlockConfig(mixer=AttentionConfig(heads=4, kv_heads=2, head_dim=32), mlp=GatedMLPConfig(hidden=128)),),
)
MOMENTS = [AdamW8bit(learning_rate=RATES), AdamW8bit(learning_rate=RATES, moments=Float8Moments())]
_, (SHAPES, *_), (FACTS, *_) = abstract_model(MODEL)
MESH = MeshConfig(fsdp=2, tensor=2, data=2)


def _transformation(optimizer) -> optax.GradientTransformation:
    return optimizer.build(RATES.build(100), FACTS)


def _tree(seed: int, scale: float) -> dict:
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (scale * random.standard_normal(x.shape)).astype(np.float32), SHAPES)


def _state(tx) -> TrainState:
    return jax.jit(lambda params: state_of(ModelState(params), tx))(_tree(0, 1.0))


def _step(tx):
    def step(state, gradients):
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        return state._replace(model=ModelState(optax.apply_updates(state.params, updates)), opt_state=opt_state)

    return step


def _whole(state: TrainState) -> TrainState:
    """Return the state in float32 on the host, so that codes of any dtype compare."""
    return jax.tree.map(lambda x: np.asarray(x.astype(jnp.float32)), state)


def _codes(state: TrainState) -> list[np.ndarray]:
    codes = [np.asarray(x.astype(jnp.float32)) for x in jax.tree.leaves(state.opt_state) if x.dtype.itemsize == 1]
    assert len(codes) == 16
    return codes


def test_tables_and_small_tensors_keep_32_bits():
    state = jax.eval_shape(_transformation(MOMENTS[0]).init, SHAPES)
    moments = jax.tree_util.tree_leaves_with_path(state.m, is_leaf=lambda x: isinstance(x, QuantizedArray))
    elements = {  # of one layer
        jax.tree_util.keystr(path): leaf.size // (MODEL.repeats if "stacks" in str(path[0]) else 1)
        for path, leaf in jax.tree_util.tree_leaves_with_path(SHAPES)
    }
    quantized = {jax.tree_util.keystr(path) for path, leaf in moments if isinstance(leaf, QuantizedArray)}
    assert quantized == {name for name, size in elements.items() if size >= 4096 and "table" not in name}
    assert {sorted(elements.values())[0], elements["['embedding']['table']"]} == {64, 256 * 64}  # both kinds are there


@pytest.mark.parametrize(
    "optimizer", [*MOMENTS, AdamW8bit(learning_rate=RATES, implementation="xla")], ids=["dynamic", "fp8", "by name"]
)
def test_another_mesh_gives_the_same_codes_with_no_collective(optimizer):
    tx, mesh = _transformation(optimizer), MESH.build()
    state = _state(tx)
    layout = state_shardings(state, ModelState(FACTS), mesh)
    gradients = [_tree(1, 1e-2), _tree(2, 1e-3)]
    alone, step = state, jax.jit(_step(tx))
    for gradient in gradients:
        alone = step(alone, gradient)
    of_gradients = shardings(FACTS, SHAPES, mesh)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(state, layout)
        compiled = (
            jax.jit(_step(tx), out_shardings=layout)
            .lower(sharded, jax.device_put(gradients[0], of_gradients))
            .compile()
        )
        for gradient in gradients:
            sharded = compiled(sharded, jax.device_put(gradient, of_gradients))
    assert collectives(compiled.as_text()).total_bytes == 0
    assert_close(_codes(sharded), _codes(alone), EXACT)
    assert_close(sharded._replace(opt_state=()), alone._replace(opt_state=()), CLOSED_FORM)


def test_a_kernel_refuses_shards_that_hold_no_whole_blocks():
    tx, mesh = _transformation(AdamW8bit(learning_rate=RATES, implementation="xla")), MeshConfig(fsdp=8, data=1).build()
    spec = {"<spec>": r"P\(.*\)(?= with)"}  # in JAX's words
    with jax.set_mesh(mesh), refused(ValueError, (256, 64), "blocks", varies=spec):
        jax.eval_shape(_step(tx), jax.eval_shape(lambda params: state_of(ModelState(params), tx), SHAPES), SHAPES)


def test_scales_are_sharded_as_their_codes():
    mesh = MESH.build()
    state = jax.eval_shape(lambda p: state_of(ModelState(p), _transformation(MOMENTS[0])), SHAPES)
    layout = state_shardings(state, ModelState(FACTS), mesh).opt_state.m
    query = layout["stacks"]["blocks"]["blocks"][0]["mixer"]["query"]["kernel"]
    assert query.scales.spec == query.codes.spec == P("stage", ("fsdp", "expert"), "tensor", None)


def test_state_is_restored_on_another_mesh(tmp_path):
    tx = _transformation(MOMENTS[1])
    state = jax.jit(_step(tx))(_state(tx), _tree(1, 1e-2))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, Snapshot(state, {}, {}))
    layout = state_shardings(state, ModelState(FACTS), MESH.build())
    target = jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), state, layout)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_state(1, target)
    assert_close(_whole(restored), _whole(state), EXACT)
    assert jax.tree.map(lambda x: x.dtype, restored) == jax.tree.map(lambda x: x.dtype, state)


def test_the_state_of_the_shipped_configuration_is_at_most_28_percent_of_adamw():
    config = load("configs/adam8bit_tiny.gin", []).config
    _, (shapes, *_), (axes, *_) = abstract_model(config.model)
    eight, plain = (
        bytes_of(jax.eval_shape(optimizer.build(RATES.build(1), axes).init, shapes))
        for optimizer in (config.optimizer, AdamW(learning_rate=RATES))
    )
    assert isinstance(config.optimizer, AdamW8bit) and eight <= 0.28 * plain
