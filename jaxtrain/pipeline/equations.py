"""Functions as lists of equations, so that one can be cut in two.

`trace` writes a function down (its jaxpr), with nested calls and the recomputation of remat policies spelled out;
`part` keeps the equations that some values need; `run` computes.
"""

import functools
from collections.abc import Callable, Iterable

import jax
from jax.extend.core import Jaxpr, Literal, Var

# Calls, and under which name they hold what they call. A derivative of one's own is taken before anything is traced.
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "checkpoint": "jaxpr", "remat2": "jaxpr", "custom_vjp_call": "call_jaxpr"}


def trace(function: Callable, *arguments) -> Jaxpr:
    """Return the equations of a function for arguments like these."""
    nested = jax.make_jaxpr(function)(*arguments)
    return jax.make_jaxpr(functools.partial(_spelled_out, nested))(*jax.tree.leaves(arguments))


def part(jaxpr: Jaxpr, inputs: Iterable[Var], outputs: Iterable[Var | Literal]) -> Jaxpr:
    """Return the equations that lead from `inputs` to `outputs`."""
    inputs, outputs = list(inputs), list(outputs)
    wanted, kept = variables(outputs) - set(inputs), []
    for equation in reversed(jaxpr.eqns):
        if wanted.intersection(equation.outvars):
            kept.append(equation)
            wanted |= variables(equation.invars) - set(inputs)
    return jaxpr.replace(invars=inputs, outvars=outputs, eqns=kept[::-1])


def run(jaxpr: Jaxpr, *arguments) -> list[jax.Array]:
    """Compute the outputs from trees of inputs, whatever axes of length one these have."""
    leaves = [x.reshape(var.aval.shape) for x, var in zip(jax.tree.leaves(arguments), jaxpr.invars, strict=True)]
    return list(jax.core.eval_jaxpr(jaxpr, jaxpr.consts, *leaves))


def variables(atoms: Iterable[Var | Literal]) -> set[Var]:
    return {atom for atom in atoms if not isinstance(atom, Literal)}


def dependents(jaxpr: Jaxpr, sources: Iterable[Var]) -> set[Var]:
    """Return the values that depend on one of `sources`, these included."""
    found = set(sources)
    for equation in jaxpr.eqns:
        if found & variables(equation.invars):
            found.update(equation.outvars)
    return found


def _spelled_out(jaxpr: Jaxpr, *arguments) -> list[jax.Array]:
    """Compute a jaxpr with its calls unfolded.

    A checkpoint that guards itself (`prevent_cse`) stays one equation: it has memory of its own to save.
    """
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*jaxpr.consts, *arguments], strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        primitive, params, inputs = equation.primitive, equation.params, map(read, equation.invars)
        if primitive.name in CALLS and not params.get("prevent_cse"):
            outputs = _spelled_out(params[CALLS[primitive.name]], *inputs)
        else:
            outputs = primitive.bind(*inputs, **primitive.get_bind_params(params))
            outputs = outputs if primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
