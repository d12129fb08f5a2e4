"""The objective over validation data: always the same batches in the same order, whatever the run's seed."""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxtrain.data import DataConfig, Rows, batches_of, open_rows
from jaxtrain.data.sources.base import Text
from jaxtrain.data.store import TokenStore
from jaxtrain.objectives.base import Objective, Sums, Terms
from jaxtrain.ranges import check_name
from jaxtrain.shapes import Batch
from jaxtrain.train.feed import Layout

SEED = 0
VALIDATION_LOSS = "validation_loss"  # among the numbers of a run
HELD_OUT = ""  # the name of the part of the training text that is held out


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationSet:
    """Text of its own to evaluate on, all of it: a source or a mixture, read as the data of the phase are."""

    name: str
    source: Text

    def __post_init__(self):
        check_name("name", self.name)

    def read_as(self, data: DataConfig) -> DataConfig:
        """Return the data of this text, all of it, with the tokenizer, packing and examples of `data`."""
        return dataclasses.replace(data, source=self.source, validation_fraction=0.0)


class ValidationRows(NamedTuple):
    """The rows of a validation set, what its sources are called, and the bytes that each id stands for, if known."""

    rows: Rows
    names: tuple[str, ...]
    byte_counts: np.ndarray | None


def validation_sets(
    data: DataConfig,
    sets: Sequence[ValidationSet],
    *,
    sequence_length: int,
    stores: Sequence[TokenStore] | None = None,
    of_sets: Mapping[str, Sequence[TokenStore]] = MappingProxyType({}),
) -> dict[str, ValidationRows]:
    """Return one pass over each validation set by its name, and over the held-out part of the text as HELD_OUT.

    The held-out part is of `stores`, opened before, or else of the text as it is now; a set is of those in `of_sets`.
    The held-out part is left out where nothing is held out and there are other sets.
    """
    counts = data.tokenizer.byte_counts() if data.examples.asks_for_next else None
    once = functools.partial(open_rows, sequence_length=sequence_length, seed=SEED, num_epochs=1)
    found = {}
    if data.validation_fraction or not sets:
        held_out = once(data, split="validation", stores=stores)
        found[HELD_OUT] = ValidationRows(held_out, data.source.names, counts)
    for own in sets:
        whole = once(own.read_as(data), split="train", stores=of_sets.get(own.name))
        found[own.name] = ValidationRows(whole, own.source.names, counts)
    return found


def validation_names(data: Sequence[DataConfig], sets: Sequence[ValidationSet]) -> list[str]:
    """Return what evaluations of some data and sets are called: sets, and the sources of those that are mixtures."""
    held_out = [config.source for config in data if config.validation_fraction or not sets]
    names = dict.fromkeys(name for source in held_out for name in _names(HELD_OUT, source))
    return [*names, *(name for own in sets for name in _names(own.name, own.source))]


def _names(name: str, text: Text) -> list[str]:
    """Return the name of an evaluation, and those of the sources of a mixture in it."""
    return [name, *(label(name, part) for part in text.names if len(text.parts) > 1)]


def label(*names: str) -> str:
    """Return the name of a number: its parts that are not empty, joined."""
    return "_".join(filter(None, names))


def perplexity(nats: float) -> float:
    """Return e^nats, or infinity where a float cannot hold it, as of a run that diverged."""
    return math.inf if nats > math.log(sys.float_info.max) else math.exp(nats)


class Evaluation(NamedTuple):
    """The mean of the term that an objective is evaluated by, in nats a token, and its denominator.

    For next tokens the denominator is the sum of the weights of the loss: the number of tokens, where all are 1.
    `bytes` are those of the tokens, with their weights, and None where they are not known. `sources` are the parts of a
    mixture.
    """

    loss: float
    weight: float
    bytes: float | None = None
    sources: Mapping[str, "Evaluation"] = MappingProxyType({})

    @property
    def bits_per_byte(self) -> float | None:
        """The loss of a byte of text, in bits: the same text may be compared over tokenizers. None: not known."""
        return self.loss * self.weight / math.log(2) / self.bytes if self.bytes else None


def described(found: Evaluation) -> str:
    """Return the numbers of an evaluation as text, but for those of its sources."""
    bits = "" if found.bits_per_byte is None else f", {found.bits_per_byte:.4f} bits a byte"
    tokens = f"tokens of total weight {round(found.weight, 2):,.12g}"
    return f"{found.loss:.4f} nats a token, perplexity {perplexity(found.loss):.2f}{bits}, over {tokens}"


Measured = tuple[Terms, Sums, Float[Array, ""] | None]  # of a batch: sums of terms, their denominators, bytes
type Named = tuple[str, Batch]
type Track = Callable[[Iterable[Named], int], Iterable[Named]]  # batches and their number to the same batches


def untracked(batches: Iterable[Named], total: int) -> Iterable[Named]:
    return batches


class Read:
    """The first `batches` batches of a validation set, or all of them, with the names of their sources."""

    def __init__(self, validation: ValidationRows, *, batch_size: int, batches: int | None, mesh: Mesh):
        rows, names, _ = validation
        count = len(rows) if batches is None else min(len(rows), min(batches, sys.maxsize // batch_size) * batch_size)
        self.parts = {name: part for name, part in zip(names, rows.parts(count), strict=True) if len(part)}
        self._layout, self._size = Layout(batch_size, rows.sequence_length, mesh), batch_size

    def __len__(self) -> int:
        return sum(-(-len(part) // self._size) for part in self.parts.values())

    def __iter__(self) -> Iterator[Named]:
        for name, part in self.parts.items():
            for batch in batches_of(part, batch_size=self._size, rows=self._layout.rows):
                yield name, self._layout.globalise(batch)


def evaluate[Model](
    step: Callable[[Model, Batch], tuple[Terms, Sums]],
    objective: Objective,
    model: Model,
    validation: ValidationRows,
    *,
    batch_size: int,
    batches: int | None,
    mesh: Mesh,
    track: Track = untracked,
) -> Evaluation:
    """Evaluate over the first `batches` batches of a validation set, or over all of them.

    The rows of each source of a mixture are evaluated by themselves. `track` is told of every batch.

    Raises:
        ValueError: they hold no token with loss.
    """
    read = Read(validation, batch_size=batch_size, batches=batches, mesh=mesh)
    names, counts = validation.names, validation.byte_counts
    sums: dict[str, list[Measured]] = {name: [] for name in read.parts}
    with jax.set_mesh(mesh):
        for name, batch in track(read, len(read)):
            sums[name].append((*step(model, batch), _bytes(batch.targets, batch.weights, counts)))
    whole = mean_of(objective, [part for own in sums.values() for part in own])
    found = {name: mean_of(objective, own) for name, own in sums.items()} if len(names) > 1 else {}
    if not whole.weight:
        raise ValueError(f"{batches=} of the validation data hold no token with loss; take more, or None for all")
    return whole._replace(sources={name: part for name, part in found.items() if part.weight})


def mean_of(objective: Objective, parts: Sequence[Measured]) -> Evaluation:
    """Return the mean of the evaluated term over batches, from the sums of each and the bytes of each."""
    terms, weights, count = jax.tree.map(lambda *values: sum(map(float, values)), *parts)
    weight = weights[objective.evaluated]
    total = (terms.minimised | terms.reported)[objective.evaluated]
    return Evaluation(total / weight if weight else math.nan, weight, count)


def _bytes(
    targets: Int[Array, "B L"], weights: Float[Array, "B L"], counts: np.ndarray | None
) -> Float[Array, ""] | None:
    return None if counts is None else _sum_of_bytes(targets, weights, counts)


@jax.jit
def _sum_of_bytes(
    targets: Int[Array, "B L"], weights: Float[Array, "B L"], counts: Float[Array, "W"]
) -> Float[Array, ""]:
    return jnp.sum(counts[targets] * weights)
