"""The places of our parameters in a family's tensors.

A tensor of a family has parts. A part is the path of one of our parameters, and a view. The view is a function from an
array of the tensor's shape to the part of it that is the parameter, in the parameter's own shape, sharing memory.

There are two layouts of linears: `torch.nn.Linear` has [outputs, inputs], GPT-2 has [inputs, outputs]. Several linears
of the same inputs may be one tensor: side by side (GPT-2, Phi-3), or the parts of every head together (GPT-NeoX). Heads
and head dim are one axis in all of these, and two axes in our parameters.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig

Path = tuple[str | int, ...]
View = Callable[[np.ndarray], np.ndarray]
Axes = tuple[int, ...]


class Part(NamedTuple):
    """A part of a tensor that is a parameter, or with `added` a term of a parameter that other tensors give, too.

    On reading a term is added to the parameter. On writing the parameter has all of it, and the tensor is zero. The
    part of an `expert` is that index of a parameter that is stacked over experts.
    """

    path: Path
    view: View
    added: bool = False
    expert: int | None = None


class Tensor(NamedTuple):
    """One tensor of a family. Its parts are the slice `repeat` of stacked parameters, or for None whole parameters.

    An `exact` one is never rounded to another dtype.
    """

    name: str
    shape: Axes
    parts: tuple[Part, ...]
    repeat: int | None = None
    exact: bool = False


def as_is(name: str, shape: Axes, *path: str | int) -> Tensor:
    """Return a tensor that equals a parameter: a table, a norm's vector, or the head, whose outputs come first too."""
    return Tensor(name, shape, (Part(path, lambda w: w),))


def torch_linear(name: str, inputs: Axes, outputs: Axes, *path: str | int, bias: bool = False) -> list[Tensor]:
    """Return the tensors of a linear in the layout of `torch.nn.Linear`."""
    order = (*range(len(outputs), len(outputs) + len(inputs)), *range(len(outputs)))
    kernel = Part((*path, "kernel"), lambda w: w.reshape(*outputs, *inputs).transpose(order))
    weight = Tensor(f"{name}.weight", (math.prod(outputs), math.prod(inputs)), (kernel,))
    return [weight, _bias(name, outputs, *path)] if bias else [weight]


def torch_linears(name: str, inputs: Axes, *linears: tuple[Axes, Path]) -> Tensor:
    """Return the tensor of several linears without biases, given by (outputs, path): one after the other."""

    def rows(first: int, outputs: Axes) -> View:
        order = (*range(len(outputs), len(outputs) + len(inputs)), *range(len(outputs)))
        last = first + math.prod(outputs)
        return lambda w: w[first:last].reshape(*outputs, *inputs).transpose(order)

    parts, first = [], 0
    for outputs, path in linears:
        parts.append(Part((*path, "kernel"), rows(first, outputs)))
        first += math.prod(outputs)
    return Tensor(f"{name}.weight", (first, math.prod(inputs)), tuple(parts))


def torch_heads(name: str, inputs: Axes, outputs: Axes, *paths: Path, bias: bool) -> list[Tensor]:
    """Return the tensors of several linears in the layout of `torch.nn.Linear`: all their outputs for each head."""
    (D,), (H, K), count = inputs, outputs, len(paths)

    def matrix(i: int) -> View:
        return lambda w: w.reshape(H, count, K, D)[:, i].transpose(2, 0, 1)

    def vector(i: int) -> View:
        return lambda b: b.reshape(H, count, K)[:, i]

    kernels = tuple(Part((*path, "kernel"), matrix(i)) for i, path in enumerate(paths))
    biases = tuple(Part((*path, "bias"), vector(i)) for i, path in enumerate(paths))
    tensors = [Tensor(f"{name}.weight", (H * count * K, D), kernels), Tensor(f"{name}.bias", (H * count * K,), biases)]
    return tensors if bias else tensors[:1]


def conv1d(name: str, inputs: Axes, outputs: Axes, *path: str | int) -> list[Tensor]:
    """Return the tensors of a linear in the layout of GPT-2's `Conv1D`, which has a bias."""
    kernel = Part((*path, "kernel"), lambda w: w.reshape(*inputs, *outputs))
    weight = Tensor(f"{name}.weight", (math.prod(inputs), math.prod(outputs)), (kernel,))
    return [weight, _bias(name, outputs, *path)]


def fused(name: str, shape: Axes, *parts: tuple[Path, View]) -> Tensor:
    """Return a tensor of several parameters, or of those of all experts, given by their paths and their views."""
    return Tensor(name, shape, tuple(Part(path, view) for path, view in parts))


def of_expert(expert: int, tensors: list[Tensor]) -> list[Tensor]:
    """Return the tensors of one of the experts whose parameters are stacked."""
    return [t._replace(parts=tuple(part._replace(expert=expert) for part in t.parts)) for t in tensors]


def _bias(name: str, outputs: Axes, *path: str | int) -> Tensor:
    """Return the tensor of a bias, whose one axis may be several axes of our parameter."""
    return Tensor(f"{name}.bias", (math.prod(outputs),), (Part((*path, "bias"), lambda w: w.reshape(outputs)),))


def conv1d_of(name: str, inputs: Axes, outputs: Axes, *paths: Path) -> list[Tensor]:
    """Return the tensors of one `Conv1D` for several linears of the same inputs, with their outputs side by side."""
    return [
        _side_by_side(f"{name}.weight", inputs, outputs, *((*path, "kernel") for path in paths)),
        _side_by_side(f"{name}.bias", (), outputs, *((*path, "bias") for path in paths)),
    ]


def _side_by_side(name: str, inputs: Axes, outputs: Axes, *paths: Path) -> Tensor:
    """Return a tensor of parameters of one shape, side by side along the outputs. Biases have inputs ()."""
    count = len(paths)

    def nth(i: int) -> View:
        index: tuple[slice | int, ...] = (*(slice(None) for _ in inputs), i)
        return lambda w: w.reshape(*inputs, count, *outputs)[index]

    shape = (*((math.prod(inputs),) if inputs else ()), count * math.prod(outputs))
    return Tensor(name, shape, tuple(Part(path, nth(i)) for i, path in enumerate(paths)))


def in_layers(
    config: DecoderConfig, prefix: str, block_tensors: Callable[[DecoderConfig, BlockConfig], list[Tensor]]
) -> Iterator[Tensor]:
    """Yield the tensors of every layer, named `prefix` + layer, as slices of the parameters stacked over repeats."""
    layer = 0
    for stack, (blocks, repeats) in config.stacks.items():
        for repeat, (position, block) in itertools.product(range(repeats), enumerate(blocks)):
            for tensor in block_tensors(config, block):
                parts = tuple(
                    part._replace(path=("stacks", stack, "blocks", position, *part.path)) for part in tensor.parts
                )
                yield tensor._replace(name=f"{prefix}{layer}.{tensor.name}", parts=parts, repeat=repeat)
            layer += 1
