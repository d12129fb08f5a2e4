"""Functions as jaxprs, lists of equations, so that one can be cut in two.

`trace` makes the jaxpr of a function, with nested calls and the recomputation of remat policies inlined. `part` keeps
the equations that some values need. `run` computes a jaxpr.
"""

import functools
from collections.abc import Callable, Iterable
from typing import cast

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

# Calls, and the parameter with the jaxpr that they call. Custom derivatives were applied before the trace.
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "checkpoint": "jaxpr", "remat2": "jaxpr", "custom_vjp_call": "call_jaxpr"}


def trace(function: Callable, *arguments) -> Jaxpr:
    """Return the jaxpr of a function for arguments like these, with calls inlined."""
    return rewritten(jax.make_jaxpr(function)(*arguments), _inlined, *arguments)


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
    """Compute the outputs from trees of inputs, which may have more or fewer axes of length one."""
    leaves = [x.reshape(aval(var).shape) for x, var in zip(jax.tree.leaves(arguments), jaxpr.invars, strict=True)]
    return list(jax.core.eval_jaxpr(jaxpr, jaxpr.consts, *leaves))


def aval(var: Var) -> jax.core.ShapedArray:
    """Return the type of a value."""
    return cast(jax.core.ShapedArray, var.aval)  # JAX declares the base class; the values of these jaxprs are arrays


def variables(atoms: Iterable[Var | Literal]) -> set[Var]:
    """Return the atoms that are not literals."""
    return {atom for atom in atoms if not isinstance(atom, Literal)}


def dependents(jaxpr: Jaxpr, sources: Iterable[Var]) -> set[Var]:
    """Return the values that depend on one of `sources`, these included."""
    found = set(sources)
    for equation in jaxpr.eqns:
        if found & variables(equation.invars):
            found.update(equation.outvars)
    return found


def rewritten(jaxpr: Jaxpr, rewrite: Callable[[JaxprEqn, list], list], *arguments) -> Jaxpr:
    """Return the equations of a jaxpr with each replaced by what `rewrite(equation, inputs)` computes."""
    evaluate = functools.partial(_evaluate, jaxpr, rewrite)
    return jax.make_jaxpr(evaluate)(*jax.tree.leaves(arguments))


def bind(equation: JaxprEqn, inputs: list) -> list:
    """Compute one equation."""
    primitive = equation.primitive
    outputs = primitive.bind(*inputs, **primitive.get_bind_params(equation.params))
    return outputs if primitive.multiple_results else [outputs]


def _inlined(equation: JaxprEqn, inputs: list) -> list:
    """Compute an equation, with calls inlined.

    A checkpoint with `prevent_cse` stays one equation, so that it still saves memory.
    """
    name, params = equation.primitive.name, equation.params
    if name not in CALLS or params.get("prevent_cse"):
        return bind(equation, inputs)
    return _evaluate(params[CALLS[name]], _inlined, *inputs)


def _evaluate(jaxpr: Jaxpr, rewrite: Callable[[JaxprEqn, list], list], *arguments) -> list:
    """Compute a jaxpr, each of its equations by `rewrite`."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*jaxpr.consts, *arguments], strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        values.update(zip(equation.outvars, rewrite(equation, [*map(read, equation.invars)]), strict=True))
    return [read(atom) for atom in jaxpr.outvars]
