"""What must not change the results of linear attention and the delta rule, and what they refuse."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absent import compile_for
from interpreted import interpreted
from jaxtrain_kernels.delta_rule import delta_rule
from jaxtrain_kernels.delta_rule import recurrent_step as delta_step
from jaxtrain_kernels.linear_attention import linear_attention
from jaxtrain_kernels.linear_attention import recurrent_step as linear_step
from recurrent import Case, exact, inputs_of, operation, results, segment_ids, shapes_of
from tolerances import EXACT, SAME_SUMS, Tolerance, assert_close

KINDS = {
    "step": Case(lengths=(70,), gate="step", heads=4),
    "channel": Case(lengths=(70,), gate="channel"),
    "delta": Case(lengths=(70,), gate="step", delta=True, heads=4),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def _run(kind: str, lengths: tuple[int, ...], chunk: int = 32):
    return jax.jit(operation(dataclasses.replace(KINDS[kind], lengths=lengths), chunk=chunk))


@functools.cache
def _inputs(kind: str, length: int = 70) -> dict[str, jax.Array]:
    drawn = inputs_of(dataclasses.replace(KINDS[kind], lengths=(length,)))
    return {name: jnp.asarray(x, jnp.float32) for name, x in drawn.items()}


def _half(kind: str, start: int, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return output and final state of 35 of the 70 steps."""
    part = {n: x[:, start : start + 35] for n, x in _inputs(kind).items() if n != "initial_state"}
    return _run(kind, (35,))(part | {"initial_state": state})


@each_kind
def test_packed_sequences_have_the_results_of_separate_ones(kind):
    state = _inputs(kind)["initial_state"]
    first, _ = _half(kind, 0, state)
    second, last = _half(kind, 35, jnp.zeros_like(state))
    packed = _run(kind, (35, 35))(_inputs(kind))
    assert_close(packed, (jnp.concatenate([first, second], axis=1), last), SAME_SUMS)


@each_kind
def test_a_split_sequence_with_the_state_carried_over_is_the_whole_sequence(kind):
    first, state = _half(kind, 0, _inputs(kind)["initial_state"])
    second, last = _half(kind, 35, state)
    whole = _run(kind, (70,))(_inputs(kind))
    assert_close((jnp.concatenate([first, second], axis=1), last), whole, SAME_SUMS)


@each_kind
def test_chunk_size_does_not_matter(kind):
    small, large = (_run(kind, (100, 157), chunk)(_inputs(kind, 257)) for chunk in (16, 256))
    assert_close(large, small, SAME_SUMS)


@each_kind
def test_steps_of_decoding_end_in_the_state_of_training(kind):
    inputs, one_step = _inputs(kind), delta_step if KINDS[kind].delta else linear_step
    names = [name for name in ("q", "k", "v", "beta", "log_decay") if name in inputs]

    def step(state, tensors):
        output, state = one_step(*tensors, state)
        return state, output

    steps = tuple(inputs[name].swapaxes(0, 1) for name in names)
    state, outputs = jax.lax.scan(step, inputs["initial_state"], steps)
    assert_close((outputs.swapaxes(0, 1), state), _run(kind, (70,))(inputs), SAME_SUMS)


@pytest.mark.parametrize(("implementation", "length"), [("xla", 100), ("tpu", 40)])
def test_gates_that_shut_within_one_step_overflow_nothing(implementation, length):
    case = Case(lengths=(length,), gate="channel", rows=1, heads=1, key_heads=1)
    inputs = inputs_of(case)
    inputs["log_decay"] = np.random.default_rng(2).choice([-20.0, 0.0], inputs["log_decay"].shape)
    with interpreted("tpu"):
        found = results(operation(case, implementation, chunk=64), inputs, "float32")
    desired = exact(case, inputs)
    assert_close(found, desired, Tolerance(absolute=1e-4), "against the recurrence in float64")


def test_temporaries_of_the_gradient_grow_with_the_length_to_a_few_times_the_inputs():
    """The states of all steps would take fifty times the inputs."""

    def memory(length):
        case = dataclasses.replace(KINDS["channel"], lengths=(length,), heads=4, key_heads=4, rows=1)
        gradient = jax.grad(lambda inputs: operation(case, "xla", chunk=64)(inputs)[0].astype(jnp.float32).sum())
        return compile_for("v5e:2x2", gradient, shapes_of(case)).memory_analysis()

    short, long = memory(262_144), memory(524_288)  # where what lies in vector memory, uncounted, is little
    assert long.temp_size_in_bytes < 2.2 * short.temp_size_in_bytes
    assert long.temp_size_in_bytes < 4 * long.argument_size_in_bytes


def test_segment_ids_that_come_again_start_anew():
    case = Case(lengths=(10, 10, 10), gate="none")
    inputs = inputs_of(case)
    again = np.where(segment_ids(case) == 3, 1, segment_ids(case))
    tensors = {n: jnp.asarray(inputs[n], jnp.float32) for n in ("q", "k", "v", "initial_state")}
    assert_close(
        linear_attention(**tensors, segment_ids=again),
        linear_attention(**tensors, segment_ids=segment_ids(case)),
        EXACT,
    )


X = jnp.zeros((1, 8, 2, 4))
WRONG = {
    "k has 3 heads: they must divide the 4 heads of q": lambda: linear_attention(
        jnp.zeros((1, 8, 4, 4)), jnp.zeros((1, 8, 3, 4)), jnp.zeros((1, 8, 3, 4))
    ),
    r"v has shape \(1, 7, 2, 4\)": lambda: linear_attention(X, X, X[:, :7]),
    r"q has shape \(8, 2, 4\): must have four axes": lambda: linear_attention(X[0], X, X),
    r"log_decay has shape \(1, 8\): must be \(2,\)": lambda: linear_attention(X, X, X, X[:, :, 0, 0]),
    r"log_decay has shape \(1, 8, 2, 4\): must be \(2,\) or \(1, 8, 2\)": lambda: delta_rule(X, X, X, X[..., 0], X),
    r"beta has shape \(1, 8, 2, 4\)": lambda: delta_rule(X, X, X, X),
    r"initial_state has shape \(1, 8, 2, 4\)": lambda: delta_rule(X, X, X, X[..., 0], initial_state=X),
    "chunk_size=24: must be a multiple of 16 from 16 to 256": lambda: linear_attention(X, X, X, chunk_size=24),
    "q, k and v are float32, bfloat16 and float32": lambda: linear_attention(X, X.astype(jnp.bfloat16), X),
    "have 1 rows of 0 steps": lambda: linear_attention(X[:, :0], X[:, :0], X[:, :0]),
    "have 0 rows of 8 steps": lambda: linear_attention(X[:0], X[:0], X[:0]),
    "float8_e5m2: give one floating-point dtype to all, of 16": lambda: linear_attention(
        *[X.astype("float8_e5m2")] * 3
    ),
    "implementation='cuda': linear_attention has xla": lambda: linear_attention(X, X, X, implementation="cuda"),
}


@pytest.mark.parametrize("message", WRONG)
def test_calls_that_cannot_be_are_refused_with_the_reason(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
