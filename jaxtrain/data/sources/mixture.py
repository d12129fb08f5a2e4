"""Mixtures of sources: the source of every row in closed form, so any row can be found without the rows before it.

Weights are shares of the tokens trained on. By default the weight of a source of n tokens is n^(1/temperature). With
temperature 1 it is in proportion to size, and larger values make the weights more equal (Li et al. (2024), "Upsample or
Upweight? Balanced Training on Heavily Imbalanced Datasets", arXiv:2410.04579). The paper's Cooldown, which lowers the
temperature during training, is a phase with another mixture. Weighting losses instead of rows is left out, because its
gradients have the larger variance. Grain's own mix is not used, because it rounds weights to hundredths of the smallest
and does not know the epochs of its parents.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from jaxtrain.data.sources.base import Source, Text
from jaxtrain.ranges import check_name

_RESOLUTION = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Weighted:
    """A source and its share of the tokens relative to the others. None derives the share from its size.

    `name` is what it is called in metrics; source0, source1 and so on by default. `task` is the number of its task, for
    mixtures of experts that are routed by task.
    """

    source: Source
    weight: float | None = None
    name: str | None = None
    task: int | None = None

    def __post_init__(self):
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise ValueError(f"weight={self.weight} must be positive and finite. Leave out an unwanted source.")
        if self.name is not None:
            check_name("name", self.name)
        if self.task is not None and self.task < 0:
            raise ValueError(f"task={self.task}: tasks are numbered from 0")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Mixture(Text):
    """Several sources, each shuffled and repeated by itself."""

    sources: tuple[Weighted, ...]
    temperature: float = 1.0
    paper: ClassVar[str] = "arXiv:2410.04579"

    def __post_init__(self):
        given = [part.weight is not None for part in self.sources]
        if not given:
            raise ValueError("sources=() must name at least one source.")
        if any(given) != all(given):
            raise ValueError("weight must be given for every source of a mixture or for none.")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be positive; 1 is in proportion to size.")
        if all(given) and self.temperature != 1:
            raise ValueError(f"temperature={self.temperature} has no effect on given weights. Leave out one of them.")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"sources are called {', '.join(self.names)}: give each another name")

    @property
    def parts(self) -> tuple[Source, ...]:
        return tuple(part.source for part in self.sources)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(part.name or f"source{number}" for number, part in enumerate(self.sources))

    @property
    def tasks(self) -> tuple[int | None, ...]:
        return tuple(part.task for part in self.sources)

    def describe_shares(self) -> str:
        return f"weights {[part.weight for part in self.sources]}, temperature {self.temperature}"

    def token_shares(self, token_counts: Sequence[int]) -> np.ndarray:
        if self.sources[0].weight is not None:
            weights = np.array([part.weight for part in self.sources], np.float64)
        else:
            weights = (np.array(token_counts) / max(token_counts)) ** (1 / self.temperature)
        return weights / weights.sum()


@dataclasses.dataclass(frozen=True, slots=True)
class Interleaving:
    """An even interleaving of sources in proportion to integers.

    Of the first n rows the first source has n - floor(n (S - s) / S), with s its share and S the sum of all shares. The
    next source has the same part of the remaining rows and shares, and so on. In the first n rows a source differs from
    its exact share by at most one row, plus one for each source before it. After S rows every source has had exactly
    its share.
    """

    shares: tuple[int, ...]

    def counts(self, rows: int) -> list[int]:
        """Return how many of the first `rows` rows each source gives."""
        counts, remaining = [], sum(self.shares)
        for share in self.shares:
            after = rows * (remaining - share) // remaining if remaining else 0
            counts.append(rows - after)
            rows, remaining = after, remaining - share
        return counts

    def locate(self, row: int) -> tuple[int, int]:
        """Return the source of a row and how many rows the source gave before it."""
        pairs = zip(self.counts(row), self.counts(row + 1), strict=True)
        return next((source, before) for source, (before, after) in enumerate(pairs) if after != before)


def by_weight(weights: np.ndarray) -> Interleaving:
    """Return the interleaving in proportion to weights, exact to a billionth."""
    return Interleaving(tuple(max(1, round(weight * _RESOLUTION)) for weight in weights / weights.sum()))
