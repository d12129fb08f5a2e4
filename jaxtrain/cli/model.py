"""`jaxtrain model CONFIG`: layers, shapes, parameters, FLOPs, and the memory of the training state."""

import argparse
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import optax
from jax.tree_util import keystr, tree_leaves_with_path

from jaxtrain.axes import Axes
from jaxtrain.cli.config_file import load
from jaxtrain.config import TrainConfig
from jaxtrain.models.decoder import AbstractModel, abstract_model
from jaxtrain.optim.base import transformation
from jaxtrain.shapes import ModelState
from jaxtrain.train.needs import shown_bytes

STACKS = "stacks."  # the path of the stacks, whose first axis is the repeats


class Variable(NamedTuple):
    """An array of the model: its path, its shape (without the repeats), how often it is there, and what is known."""

    layer: str
    name: str
    shape: tuple[int, ...]
    times: int
    axes: tuple[str | None, ...]
    what: str  # the collection it is in, and its dtype

    @property
    def size(self) -> int:
        return self.times * math.prod(self.shape)


def run(arguments: argparse.Namespace) -> int:
    config: TrainConfig = load(arguments.config, arguments.set, import_from=arguments.import_from).config
    model = abstract_model(config.model)
    print("\n".join([*describe_layers(model), "", *describe_costs(config, model)]))
    return 0


def describe_layers(model: AbstractModel) -> Iterator[str]:
    """Yield a line for each layer, with its parameters, and under it a line for each of its arrays."""
    found = list(variables(model))
    total = sum(variable.size for variable in found)
    layers = sorted(dict.fromkeys(variable.layer for variable in found), key=_depth)
    names = max(len(variable.name) for variable in found)
    for layer in layers:
        own = [variable for variable in found if variable.layer == layer]
        size = sum(variable.size for variable in own)
        yield f"{layer}: {size:,} parameters, {size / total:.1%}"
        for variable in own:
            shape = " x ".join(map(str, variable.shape)) or "1"
            times = f"{variable.times} of " if variable.times > 1 else ""
            axes = ", ".join(name or "-" for name in variable.axes)
            yield f"  {variable.name:{names}}  {times}{shape}  ({axes})  {variable.what}"


def _depth(layer: str) -> tuple:
    """Return what sorts layers in the order of the forward pass."""
    block, _, part = layer.partition(", ")
    if part:
        parts = ("mixer_norm", "mixer", "mlp_norm", "mlp")
        stack, number = block.split()
        return 2, stack == "block", int(number), parts.index(part) if part in parts else len(parts)
    return {"embedding": (0,), "positions": (1,), "final_norm": (3,), "output": (4,)}.get(layer, (5, layer))


def variables(model: AbstractModel) -> Iterator[Variable]:
    """Yield all arrays of a model."""
    for collection, tree, facts in zip(ModelState._fields, model.shapes, model.axes, strict=True):
        for (path, leaf), own in zip(tree_leaves_with_path(tree), jax.tree.leaves(facts), strict=True):
            yield _variable(keystr(path, simple=True, separator="."), leaf, own, collection)


def _variable(path: str, leaf: jax.ShapeDtypeStruct, facts: Axes, collection: str) -> Variable:
    what = f"{collection}, {leaf.dtype}" if collection != "params" else str(leaf.dtype)
    if path.startswith(STACKS):
        stack, _, number, layer, *rest = path.removeprefix(STACKS).split(".")
        where, stacked = f"{'block' if stack == 'blocks' else stack} {number}, {layer}", int(not facts.shared)
        shape, names, times = tuple(leaf.shape[stacked:]), facts.names[stacked:], leaf.shape[0] if stacked else 1
        shown = what if stacked else f"{what}, shared by all repeats"
        return Variable(where, ".".join(rest) or layer, shape, times, names, shown)
    layer, _, name = path.partition(".")
    return Variable(layer, name or layer, tuple(leaf.shape), 1, facts.names, what)


def describe_costs(config: TrainConfig, abstract: AbstractModel) -> Iterator[str]:
    """Yield the parameters, the FLOPs of a token, and the memory of what training keeps."""
    model = config.model
    _, shapes, axes = abstract
    trained = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    active = model.active_parameter_count
    of_token = f"; a token uses {active:,}" if active < model.parameter_count else ""
    yield f"{model.parameter_count:,} parameters, {trained:,} of them trained{of_token}"
    for name, stack in model.stacks.items():
        on_one_cpu, elsewhere = (_form(model.scans(stack, one_cpu=one_cpu)) for one_cpu in (True, False))
        forms = elsewhere if on_one_cpu == elsewhere else f"{on_one_cpu} on one CPU, {elsewhere} elsewhere"
        yield f"{name}: {stack.repeats} x {len(stack.blocks)} layers, {forms}"
    for length in dict.fromkeys(phase.sequence_length for phase in config.phases):
        flops = model.flops_per_token(length)
        yield f"{flops:,.0f} FLOPs a token, forward and backward, in rows of {length} tokens"
    for key, block in model.named_blocks.items():
        used, neurons = block.mlp.evaluated_neurons, block.mlp.neurons
        if used and neurons and used < neurons:
            share = f"{used:,} of {neurons:,} neurons, {used / neurons:.1%}"
            yield f"model.{key}.mlp: in evaluation a token computes {share}"
    tx = transformation(config.optimizer, optax.constant_schedule(0.0), axes.params, clip_norm=config.clip_norm)
    parts = {name: _bytes(tree) for name, tree in shapes._asdict().items()}
    parts["optimizer"] = _bytes(jax.eval_shape(tx.init, shapes.params))
    parts["averages"] = sum(hook.copies for hook in config.hooks) * parts["params"]
    listed = ", ".join(f"{name} {shown_bytes(size)}" for name, size in parts.items() if size)
    yield f"{shown_bytes(sum(parts.values()))} of state over all devices: {listed}"
    yield "a step needs more, for gradients and activations: jaxtrain compile, or jaxtrain train --dry-run"


def _form(scans: bool) -> str:
    return "in a scan" if scans else "unrolled"


def _bytes(tree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
