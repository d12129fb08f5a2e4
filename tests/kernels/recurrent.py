"""Inputs, results and errors of the recurrent operations, for their conformance suites."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtrain_kernels import delta_rule, linear_attention
from jaxtrain_kernels.chunks import per_step, runs_of
from jaxtrain_kernels.delta_rule import reference as delta_reference
from jaxtrain_kernels.linear_attention import reference
from tolerances import error_of_norm

GATES = ("none", "head", "step", "channel")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A call: `gate` is a kind of log-decay, from `-strongest` to 0; `lengths` are those of the segments, 0 is none."""

    lengths: tuple[int, ...]
    gate: str
    heads: int = 2
    key_heads: int = 2
    keys: int = 16
    values: int = 16
    dtype: str = "float32"
    chunk: int = 32
    delta: bool = False
    strongest: float = 0.3
    rows: int = 2


def inputs_of(case: Case, seed: int = 0) -> dict[str, np.ndarray | None]:
    """Return float64 inputs that the case's dtypes represent exactly."""
    random, L = np.random.default_rng(seed), sum(case.lengths)
    B, H, J, K, V = case.rows, case.heads, case.key_heads, case.keys, case.values
    shapes = {"none": None, "head": (J,), "step": (B, L, J), "channel": (B, L, J, K)}
    normal = {"q": (B, L, H, K), "k": (B, L, J, K), "v": (B, L, J, V), "initial_state": (B, J, K, V)}
    drawn = {name: random.standard_normal(shape) for name, shape in normal.items()}
    if case.delta:
        drawn["k"] /= np.linalg.norm(drawn["k"], axis=-1, keepdims=True)
        drawn["beta"] = random.random((B, L, J))
    gate = shapes[case.gate]
    drawn["log_decay"] = None if gate is None else -case.strongest * random.random(gate)
    kept = {name: np.float32 for name in ("initial_state", "log_decay", "beta")}
    return {n: None if x is None else x.astype(kept.get(n, case.dtype)).astype(np.float64) for n, x in drawn.items()}


def segment_ids(case: Case) -> np.ndarray:
    return np.repeat(np.arange(len(case.lengths)) + 1, case.lengths)[None].repeat(case.rows, axis=0)


def operation(case: Case, implementation: str | None = None, *, chunk: int | None = None) -> Callable:
    """Return the case's public function of a dict of inputs."""
    function, ids = delta_rule.delta_rule if case.delta else linear_attention.linear_attention, segment_ids(case)

    def run(inputs):
        tensors = {"q": inputs["q"], "k": inputs["k"], "v": inputs["v"], "log_decay": inputs.get("log_decay")}
        tensors |= {"beta": inputs["beta"]} if case.delta else {}
        options = {"chunk_size": chunk or case.chunk, "implementation": implementation}
        return function(**tensors, initial_state=inputs["initial_state"], segment_ids=ids, **options)

    return run


def plain(case: Case) -> Callable:
    """Return the definition, computed in the dtype of the inputs throughout."""

    def run(inputs):
        q, k, v, state = (inputs[name] for name in ("q", "k", "v", "initial_state"))
        decay, runs = per_step(inputs.get("log_decay"), k).astype(q.dtype), runs_of(jnp.asarray(segment_ids(case)))
        if case.delta:
            return delta_reference.delta_rule(q, k, v, inputs["beta"].astype(q.dtype), decay[..., 0], runs, state)
        return reference.linear_attention(q, k, v, decay, runs, state)

    return run


def results(function: Callable, inputs: dict, dtype: str, kept: str = "float32") -> dict[str, np.ndarray]:
    """Return output, final state and the gradient of every input, for gradients of output and state drawn at random."""
    inputs = {
        name: jnp.asarray(x, kept if name in ("initial_state", "log_decay", "beta") else dtype)
        for name, x in inputs.items()
        if x is not None
    }

    @jax.jit
    def run(inputs):
        results, pull = jax.vjp(function, inputs)
        random = np.random.default_rng(1)
        return results, pull(tuple(jnp.asarray(random.standard_normal(x.shape), x.dtype) for x in results))[0]

    (output, state), gradients = run(inputs)
    found = {"output": output, "final state": state} | {f"gradient of {name}": x for name, x in gradients.items()}
    return {name: np.asarray(x, np.float64) for name, x in found.items()}


def exact(case: Case, inputs: dict) -> dict[str, np.ndarray]:
    """Return the results of the definition in float64."""
    with jax.enable_x64(True):
        return results(plain(case), inputs, "float64", "float64")


def errors(found: dict, desired: dict) -> dict[str, float]:
    """Return the error of each result, in units of its norm."""
    assert found.keys() == desired.keys()
    return {name: error_of_norm(found[name], desired[name]) for name in desired}


def assert_conforms(case: Case, implementation: str, inputs: dict | None = None) -> None:
    """Errors are at most twice those of the definition in the same dtype, or one rounding of the dtype."""
    inputs = inputs or inputs_of(case)
    desired = exact(case, inputs)
    own = errors(results(operation(case, implementation), inputs, case.dtype), desired)
    allowed = errors(results(plain(case), inputs, case.dtype, case.dtype), desired)
    rounding = float(jnp.finfo(case.dtype).eps)
    worse = {n: (own[n], allowed[n]) for n in own if not own[n] <= max(2 * allowed[n], rounding)}
    assert not worse, f"{case}: (error, that of the plain form) {worse}"


def shapes_of(case: Case, *, width: int = 128, dtype: str = "bfloat16") -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a call of a size that is worth a kernel."""
    steps, J = (case.rows, sum(case.lengths), case.key_heads), case.key_heads
    tensors = {"q": (*steps[:2], case.heads, width), "k": (*steps, width), "v": (*steps, width)}
    floats = {"log_decay": (*steps, width) if case.gate == "channel" else steps}
    floats |= {"initial_state": (case.rows, J, width, width)} | ({"beta": steps} if case.delta else {})
    shapes = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in tensors.items()}
    return shapes | {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in floats.items()}


def results_and_gradients(case: Case, implementation: str) -> Callable:
    """Return output, final state and all gradients as a function of a dict of inputs."""

    def run(inputs):
        results, pull = jax.vjp(operation(case, implementation), inputs)
        return results, pull(results)

    return run
