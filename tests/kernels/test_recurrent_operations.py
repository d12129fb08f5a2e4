"""What must not change the results of linear attention and the delta rule, and what they refuse."""

import dataclasses
import functools

import checked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ahead_of_time import compile_for
from interpreted import interpreted
from jaxtrain_kernels.delta_rule import delta_rule
from jaxtrain_kernels.delta_rule import recurrent_step as delta_step
from jaxtrain_kernels.linear_attention import linear_attention
from jaxtrain_kernels.linear_attention import recurrent_step as linear_step
from recurrent import Case, assert_conforms, exact, inputs_of, operation, results, segment_ids, shapes_of
from tolerances import EXACT, SAME_RECURRENCE, SHUT_GATES, assert_close

KINDS = {
    "none": Case(lengths=(70,), gate="none"),
    "head": Case(lengths=(70,), gate="head"),
    "step": Case(lengths=(70,), gate="step", heads=4),
    "channel": Case(lengths=(70,), gate="channel"),
    "delta": Case(lengths=(70,), gate="none", delta=True, keys=64),
    "gated delta": Case(lengths=(70,), gate="step", delta=True, heads=4, keys=64),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def _whole(kind: str, lengths: tuple[int, ...] = (70,), chunk: int = 16) -> dict[str, np.ndarray]:
    """Return results and gradients of one call."""
    case = dataclasses.replace(KINDS[kind], lengths=lengths)
    return results(operation(case, chunk=chunk), inputs_of(case), "float32")


def _assert_same(kind: str, function, whole: dict[str, np.ndarray]) -> None:
    """Results of another function of the 70 steps, and the gradients of all its inputs, are those of one call."""
    assert_close(results(function, inputs_of(KINDS[kind]), "float32"), whole, SAME_RECURRENCE)


def _half(kind: str, inputs: dict, start: int, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return output and final state of 35 of the 70 steps."""
    part = {n: x[:, start : start + 35] if x.ndim > 1 else x for n, x in inputs.items() if n != "initial_state"}
    run = operation(dataclasses.replace(KINDS[kind], lengths=(35,)), chunk=16)
    return run(part | {"initial_state": state})


@each_kind
def test_packed_sequences_have_the_results_of_separate_ones(kind):
    def separate(inputs):
        state = inputs["initial_state"]
        first, _ = _half(kind, inputs, 0, state)
        second, last = _half(kind, inputs, 35, jnp.zeros_like(state))
        return jnp.concatenate([first, second], axis=1), last

    _assert_same(kind, separate, _whole(kind, (35, 35)))


@each_kind
def test_a_split_sequence_with_the_state_carried_over_is_the_whole_sequence(kind):
    def split(inputs):
        first, state = _half(kind, inputs, 0, inputs["initial_state"])
        second, last = _half(kind, inputs, 35, state)
        return jnp.concatenate([first, second], axis=1), last

    _assert_same(kind, split, _whole(kind))


@each_kind
def test_chunk_size_does_not_matter(kind):
    assert_close(_whole(kind, (35, 35), 256), _whole(kind, (35, 35)), SAME_RECURRENCE)


@each_kind
def test_steps_of_decoding_end_in_the_state_of_training(kind):
    one_step = delta_step if KINDS[kind].delta else linear_step

    def decode(inputs):
        along = {n: x.swapaxes(0, 1) for n, x in inputs.items() if n != "initial_state" and x.ndim > 1}
        fixed = {"log_decay": inputs.get("log_decay")}

        def step(state, now):
            output, state = one_step(state=state, **fixed | now)
            return state, output

        state, outputs = jax.lax.scan(step, inputs["initial_state"], along)
        return outputs.swapaxes(0, 1), state

    _assert_same(kind, decode, _whole(kind))


def _with_gates_open_or_shut(case: Case) -> dict[str, np.ndarray]:
    inputs = inputs_of(case)
    return inputs | {"log_decay": np.random.default_rng(2).choice([-20.0, 0.0], inputs["log_decay"].shape)}


@pytest.mark.parametrize(("implementation", "length"), [("xla", 100), ("tpu", 40)])
def test_gates_that_shut_within_one_step_overflow_nothing(implementation, length):
    case = Case(lengths=(length,), gate="channel", rows=1, heads=1, key_heads=1)
    inputs = _with_gates_open_or_shut(case)
    with interpreted(implementation):
        found = results(operation(case, implementation, chunk=64), inputs, "float32")
    desired = exact(case, inputs)
    assert_close(found, desired, SHUT_GATES, "against the recurrence in float64")


def test_gates_that_shut_within_one_step_overflow_nothing_in_the_gpu_form():
    """It takes no float32, so that its error is held to that of the recurrence in bfloat16."""
    case = Case(lengths=(40,), gate="channel", rows=1, heads=1, key_heads=1, keys=64, values=64, dtype="bfloat16")
    with interpreted("gpu"):
        assert_conforms(case, "gpu", _with_gates_open_or_shut(case))


def test_temporaries_of_the_gradient_grow_with_the_length_to_a_few_times_the_inputs():
    """The states of all steps would take fifty times the inputs."""

    def memory(length):
        case = dataclasses.replace(KINDS["channel"], lengths=(length,), heads=4, key_heads=4, rows=1)
        gradient = jax.grad(lambda inputs: linear_attention(**inputs)[0].astype(jnp.float32).sum())
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


X, STATE = jnp.zeros((1, 8, 2, 4)), jnp.zeros((1, 2, 4, 4))
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
    r"state has shape \(1, 2, 4, 3\): with k \(1, 2, 4\)": lambda: linear_step(*[X[:, 0]] * 3, None, STATE[..., :3]),
    r"k has shape \(1, 8, 2, 4\): must have three axes": lambda: delta_step(X[:, 0], X, X, X[..., 0], None, STATE),
    r"beta has shape \(1, 2, 4\)": lambda: delta_step(*[X[:, 0]] * 4, None, STATE),
    r"log_decay has shape \(1, 2, 4\): must be \(2,\) or \(1, 2\)": lambda: delta_step(
        *[X[:, 0]] * 3, X[:, 0, :, 0], X[:, 0], STATE
    ),
    "have 1 rows of 0 steps": lambda: linear_attention(X[:, :0], X[:, :0], X[:, :0]),
    "have 0 rows of 8 steps": lambda: linear_attention(X[:0], X[:0], X[:0]),
    "float8_e5m2: give one floating-point dtype to all, of 16": lambda: linear_attention(
        *[X.astype("float8_e5m2")] * 3
    ),
    "implementation='cuda': linear_attention has xla": lambda: linear_attention(X, X, X, implementation="cuda"),
}


@pytest.mark.parametrize("message", WRONG)
def test_calls_that_cannot_be_are_refused_with_the_reason(message):
    with checked.off(), pytest.raises(ValueError, match=message):
        WRONG[message]()
