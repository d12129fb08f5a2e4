"""Copies of experts in use: what is computed where, what is moved, and gradients, against the definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from messages import refused
from tolerances import SAME_GRADIENT, SAME_SUMS, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.moe.dispatch import EveryExpert, Exchange, Materialise
from jaxtrain.nn.moe.experts import Experts, build_experts
from jaxtrain.nn.moe.routing import Routing
from jaxtrain.nn.remat import FullRemat
from jaxtrain.planning.collectives import collectives

WIDTH, HIDDEN, EXPERTS, ROWS, LENGTH = 8, 12, 8, 8, 64
X = jnp.asarray(np.random.default_rng(0).standard_normal((ROWS, LENGTH, WIDTH)).astype(np.float32))
STACKED = build_experts(MLPConfig(hidden=HIDDEN), EXPERTS, WIDTH, used=1.0, rngs=nnx.Rngs(0))
EXPERT_BYTES = 2 * WIDTH * HIDDEN * 4


def _routing(*numbers: np.ndarray) -> Routing:
    """Return the routing of tokens to experts with these numbers, with weights that differ."""
    chosen = sum(np.eye(EXPERTS, dtype=np.float32)[of_rank] for of_rank in numbers)
    weights = chosen * np.linspace(0.5, 1.5, chosen.size, dtype=np.float32).reshape(chosen.shape)
    return Routing(jnp.asarray(chosen), jnp.asarray(weights), len(numbers), len(numbers))


class Counting(Experts):
    """Experts that note how many rows each device computes, and how often."""

    def __init__(self, stacked):
        super().__init__(stacked)
        self.rows, self.calls = np.zeros(8, int), np.zeros(8, int)

    def grouped(self, arrays, x, sizes):
        jax.debug.callback(self._note, jax.lax.axis_index("expert"), jnp.sum(sizes))
        return super().grouped(arrays, x, sizes)

    def _note(self, device, rows):
        self.rows[device] += rows
        self.calls[device] += 1


TOKENS = np.arange(ROWS * LENGTH).reshape(ROWS, LENGTH)
SKEWED = _routing(np.where(TOKENS % 10 < 7, 0, 1 + TOKENS % 7))  # 70% ask for one expert


def test_devices_compute_as_many_tokens_although_one_expert_has_most():
    def counted(dispatch) -> Counting:
        experts = Counting(STACKED)
        with jax.set_mesh(MeshConfig(expert=8, fsdp=1).build()):
            y = jax.jit(lambda x: dispatch(x, SKEWED, experts))(X)
            jax.effects_barrier()
        assert_close(np.asarray(y), np.asarray(EveryExpert()(X, SKEWED, Experts(STACKED))), SAME_SUMS)
        return experts

    alone, copied = counted(Exchange()), counted(Materialise(slots=1))
    assert alone.rows.sum() == copied.rows.sum() == ROWS * LENGTH
    assert alone.rows.max() / alone.rows.mean() > 5.5
    assert copied.rows.max() / copied.rows.mean() <= 1.1


def test_where_slots_hold_all_experts_in_use_nothing_else_is_moved_and_others_have_no_gradient():
    """Recomputed in the backward pass, copies included."""
    routing = _routing(TOKENS % 6, (TOKENS + 1) % 6)
    dispatch, experts = Materialise(slots=6), Counting(STACKED)

    def loss(arrays, x, dispatch, experts):
        of_arrays = functools.partial(_with, experts, arrays)
        return jnp.sum(FullRemat().wrap(lambda x: dispatch(x, routing, of_arrays()))(x) ** 2)

    arrays = Experts(STACKED).arrays.params
    desired = jax.grad(loss, argnums=(0, 1))(arrays, X, EveryExpert(), Experts(STACKED))
    with jax.set_mesh(MeshConfig(expert=8, fsdp=1).build()):
        program = jax.jit(lambda *of: jax.grad(loss, argnums=(0, 1))(*of, dispatch, experts)).lower(arrays, X).compile()
        found = jax.block_until_ready(program(arrays, X))
        jax.effects_barrier()
    assert_close(found, desired, SAME_GRADIENT)
    assert not any(np.asarray(leaf)[6:].any() for leaf in jax.tree.leaves(found[0]))
    assert set(experts.calls) == {2}, experts.calls  # forward and recomputed: no round of the exchange ran
    moved = [item for item in collectives(program.as_text()).items if item.group > 1]
    copies = [item for item in moved if item.kind == "all-reduce" and "f32[6," in item.shape]
    # Forward and gradients: outside of a scan XLA finds that the recomputed copies are the first ones.
    assert sum(item.bytes for item in copies) == 2 * 2 * 6 * EXPERT_BYTES
    outside = [item.bytes for item in moved if not item.unbounded and item not in copies]
    assert max(outside) < 6 * EXPERT_BYTES // 4  # numbers of tokens and rounds


def _with(experts, params) -> Experts:
    experts.arrays = experts.arrays._replace(params=params)
    return experts


def test_no_slots_are_refused():
    with refused(ValueError, "slots=0"):
        Materialise(slots=0)
