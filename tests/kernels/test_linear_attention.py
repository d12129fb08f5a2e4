"""Linear attention with every kind of decay: conformance to the recurrence, and what must not change the result."""

import checked
import jax.numpy as jnp
import pytest
from ahead_of_time import TPUS, compile_for
from compiled_kernels import kernels_in
from interpreted import interpreted
from jaxtrain_kernels.linear_attention import linear_attention
from recurrent import Case, assert_conforms, results_and_gradients, shapes_of

CASES = [
    Case(lengths=(1,), gate="none", values=8),
    Case(lengths=(20, 0, 43), gate="head", heads=4, dtype="bfloat16", chunk=16),
    Case(lengths=(257,), gate="head", heads=4, key_heads=4, chunk=128, rows=1),
    Case(lengths=(5, 90, 5), gate="step", heads=4, key_heads=1, values=24, chunk=64),
    Case(lengths=(257,), gate="channel", heads=4, chunk=256),
    Case(lengths=(257,), gate="step", chunk=256, rows=1),
    Case(lengths=(63,), gate="channel", chunk=64, strongest=3.0, rows=1),
    Case(lengths=(30, 1, 0, 32), gate="channel", values=8, dtype="bfloat16"),
    Case(lengths=(257,), gate="none", dtype="bfloat16", chunk=256, rows=1),
    Case(lengths=(100,), gate="step", dtype="float16", chunk=48),
    Case(lengths=(1,), gate="channel", chunk=16),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.gate}-{sum(c.lengths)}-{c.dtype}")
def test_output_and_gradients_are_those_of_the_recurrence(case):
    assert_conforms(case, "xla")


INTERPRETED = [
    Case(lengths=(5, 0, 95), gate="step", key_heads=1, values=24, rows=1, chunk=64),
    Case(lengths=(100,), gate="channel", heads=1, key_heads=1, rows=1, chunk=64, strongest=3.0),
    Case(lengths=(30, 33), gate="channel", values=24, heads=1, key_heads=1, rows=1, dtype="bfloat16"),
]


@pytest.mark.parametrize("case", INTERPRETED, ids=lambda c: f"{c.gate}-{sum(c.lengths)}-{c.dtype}")
def test_tpu_kernels_conform_in_an_interpretation_with_races_and_poisoned_memory(case):
    with interpreted("tpu"):
        assert_conforms(case, "tpu")


@pytest.mark.parametrize(
    ("topology", "chunk", "dtype"),
    [
        (TPUS[0], 256, "float32"),
        (TPUS[1], 16, "bfloat16"),
        (TPUS[2], 128, "bfloat16"),
        (TPUS[3], 64, "bfloat16"),
    ],
)
def test_tpu_kernels_compile_and_each_is_in_the_program_once_for_each_kind_of_gate(topology, chunk, dtype):
    cases = [Case(lengths=(256,), gate=gate, rows=1, chunk=chunk) for gate in ("step", "channel")]
    functions = [results_and_gradients(case, "tpu") for case in cases]

    def of_both(inputs):
        return [function(own) for function, own in zip(functions, inputs, strict=True)]

    compiled = compile_for(topology, of_both, [shapes_of(case, dtype=dtype) for case in cases])
    assert kernels_in(compiled) == {f"linear_attention_{part}": 2 for part in ("forward", "states", "backward")}


@pytest.mark.parametrize(("gate", "dtype"), [("step", "bfloat16"), ("channel", "float16")])
def test_gpu_kernels_conform_in_an_interpretation(gate, dtype):
    """Keys of two tiles, so that blocks share values' gradients; two query heads a key head; a chunk and a bit."""
    case = Case(lengths=(20, 0, 50), gate=gate, key_heads=1, rows=1, keys=128, values=64, dtype=dtype)
    with interpreted("gpu"):
        assert_conforms(case, "gpu")


def test_gpu_kernels_say_all_that_they_do_not_take():
    x = jnp.zeros((1, 16, 2, 32))
    refusal = r"gpu: .*float32, not bfloat16.*the key dim is 32.*the value dim is 32"
    with checked.off(), pytest.raises(NotImplementedError, match=refusal):
        linear_attention(x, x, x, x, implementation="gpu")
