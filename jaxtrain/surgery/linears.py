"""The same model with other linears: each takes over the matrix that the other's stands for.

So adapters are put around the weights of a trained model, weights are quantized, and adapters are merged.
"""

import dataclasses
from typing import Any

import jax
from flax import nnx

from jaxtrain.axes import EXPERTS
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.models.trees import in_stacks
from jaxtrain.nn.linear.base import Linear, LinearConfig
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.param import merge, split
from jaxtrain.nn.trainable import Everything
from jaxtrain.shapes import ModelState


def plain(config: DecoderConfig) -> DecoderConfig:
    """Return the model with plain linears everywhere, of which all parameters are trained, and without a teacher."""
    return dataclasses.replace(_with_dense(config), trainable=Everything(), teacher=None)


def has_plain_linears(config: DecoderConfig) -> bool:
    """Tell whether the parameters of a model are those of `plain(config)`, whatever teaches it."""
    return plain(config) == dataclasses.replace(config, teacher=None)


def _with_dense(config: Any) -> Any:
    if isinstance(config, LinearConfig):
        return Dense()
    if isinstance(config, tuple):
        return tuple(map(_with_dense, config))
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return config
    changed = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if (new := _with_dense(value)) is not value:
            changed[field.name] = new
    return dataclasses.replace(config, **changed) if changed else config


def converted(model: ModelState, source: DecoderConfig, target: DecoderConfig, initial: ModelState) -> ModelState:
    """Return the model `source` as the model `target`. Call it jitted.

    The two differ in linears and in what is trained. What `target` has beside, such as adapters, it has from `initial`.

    Raises:
        ValueError: repeats share parameters.
    """
    if source.sharing:
        raise ValueError(f"model.sharing={source.sharing!r}: linears that repeats share cannot become of another kind")
    names = abstract_model(source).graph, abstract_model(target).graph
    modules = merge(names[0], model), merge(names[1], initial)
    stacks = {name: _each(modules[0].stacks[name], stack) for name, stack in modules[1].stacks.items()}
    _take_over(*modules)
    return in_stacks(split(modules[1])[1], stacks)


def _each(source: nnx.Module, target: nnx.Module) -> ModelState:
    """Return the arrays of a stack of modules, each of which has taken over the weights of its counterpart."""
    (old_graph, old), (new_graph, new) = split(source), split(target)

    def one(old: ModelState, new: ModelState) -> ModelState:
        module, like = merge(old_graph, old), merge(new_graph, new)
        _take_over(module, like)
        return split(like)[1]

    return jax.vmap(one)(old, new)


def _take_over(source: nnx.Module, target: nnx.Module) -> None:
    """Give the modules of `target` the weights that those of `source` with the same paths have; leave out stacks.

    What only the target has stays as it is.
    """
    ours, theirs = dict(nnx.iter_modules(target)), dict(nnx.iter_modules(source))
    stacked = {path for path in ours if path[-1:] == (EXPERTS,) and "stacks" not in path[:1]}
    linears = {path for path, module in ours.items() if isinstance(module, Linear)}
    for path in stacked:
        setattr(ours[path[:-1]], EXPERTS, merge(split(ours[path])[0], _each(theirs[path], ours[path])))
    for path, module in ours.items():
        if "stacks" in path[:1] or any(path[:end] in linears | stacked for end in range(len(path))) or path in stacked:
            continue
        other = theirs[path]
        if isinstance(module, Linear) and isinstance(other, Linear):
            module.set_dense(other.dense())
        for name, value in vars(module).items():
            if isinstance(value, nnx.Variable) and name in vars(other) and (path not in linears or name == "bias"):
                value[...] = getattr(other, name)[...]
