"""The same model with other linears: each takes over the matrix that the other's stands for.

So adapters are put around the weights of a trained model, weights are quantized, and adapters are merged.
"""

import dataclasses
from typing import Any

import jax
from flax import nnx

from jaxtrain.axes import EXPERTS, Axes
from jaxtrain.models.decoder import DecoderConfig, Pattern, abstract_model
from jaxtrain.models.sharing import Sharing
from jaxtrain.models.stacks import Stack
from jaxtrain.models.trees import in_stacks, regrouped
from jaxtrain.nn.block import Block
from jaxtrain.nn.linear.base import Linear, LinearConfig
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.param import axes_of, merge, split
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
    Linears that the repeats share are taken over once.

    Raises:
        ValueError: repeats share other parameters in the two, or a part of a linear.
    """
    if source.sharing != target.sharing:
        raise ValueError(f"model.sharing={target.sharing!r}: the weights are of sharing={source.sharing!r}; take that")
    names = abstract_model(source).graph, abstract_model(target).graph
    modules = merge(names[0], model), merge(names[1], initial)
    stacks: dict[str, ModelState] = {}
    for name, (blocks, repeats) in target.stacks.items():
        pair = modules[0].stacks[name], modules[1].stacks[name]
        _check_whole_linears(*pair, source.sharing)
        if len(source.stacks[name].blocks) == len(blocks):
            stacks[name] = _each(*pair, repeats)
        else:
            stacks[name] = regrouped(_one_by_one(*pair, repeats), Stack(blocks * repeats, 1), Stack(blocks, repeats))
    _take_over(*modules)
    return in_stacks(split(modules[1])[1], stacks)


def _each(source: nnx.Module, target: nnx.Module, repeats: int | None = None) -> ModelState:
    """Return the arrays of a stack of modules, each of which has taken over the weights of its counterpart.

    Modules are those of `repeats`, which may share arrays: such have no axis of the stack. Experts share none.
    """
    (old_graph, old), (new_graph, new) = split(source), split(target)

    def one(old: ModelState, new: ModelState) -> ModelState:
        module, like = merge(old_graph, old), merge(new_graph, new)
        _take_over(module, like)
        return split(like)[1]

    def axis(facts: Axes) -> int | None:
        return None if repeats is not None and facts.shared else 0

    before, after = (jax.tree.map(axis, axes_of(of)) for of in (source, target))
    return jax.vmap(one, in_axes=(before, after), out_axes=after, axis_size=repeats)(old, new)


def _one_by_one(source: Pattern, target: Pattern, repeats: int) -> ModelState:
    """Return the arrays of the blocks of `target` one by one, where it has another number of repeats than `source`."""
    found: list[ModelState] = []
    for layer in range(len(target.blocks) * repeats):
        module, like = (_block(stack, layer) for stack in (source, target))
        _take_over(module, like)
        found.append(jax.tree.map(lambda x: x[None], split(like)[1]))
    return ModelState(*({"blocks": dict(enumerate(trees))} for trees in zip(*found, strict=True)))


def _block(stack: Pattern, layer: int) -> Block:
    """Return one block of a stack."""
    repeat, position = divmod(layer, len(stack.blocks))
    graph, arrays = split(stack.blocks[position])
    return merge(graph, jax.tree.map(lambda x: x[repeat], arrays))


def _check_whole_linears(source: nnx.Module, target: nnx.Module, sharing: Sharing | None) -> None:
    """Raise ValueError where the repeats would share a part of a linear that stands for several matrices."""
    theirs = dict(nnx.iter_modules(source))
    for path, module in nnx.iter_modules(target):
        if isinstance(module, Linear) and path in theirs and any(_shared(module)) and not all(_shared(theirs[path])):
            raise ValueError(
                f"model.sharing={sharing!r}: of the linear {'.'.join(map(str, path))} repeats share a part alone; "
                "share all of its parameters, or none"
            )


def _shared(module: nnx.Module) -> list[bool]:
    """Tell of each variable of a module whether the repeats share it."""
    return [facts.shared for facts in jax.tree.leaves(axes_of(module))]


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
