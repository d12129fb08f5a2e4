"""All rows of a split, over all sources, in the global order. Every process reads a part of them."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence

import numpy as np

from jaxtrain.data.config import DataConfig
from jaxtrain.data.examples import NextTokens
from jaxtrain.data.source_rows import SourceRows
from jaxtrain.data.sources.base import Source
from jaxtrain.data.sources.mixture import Interleaving, by_weight
from jaxtrain.data.split import Split, documents_of
from jaxtrain.data.store import TokenStore, open_store
from jaxtrain.data.store_files import Progress
from jaxtrain.models.teacher import Hints
from jaxtrain.shapes import Batch


class Rows:
    """Random access to rows (a grain data source): endless, or `num_epochs` times every row of every source."""

    def __init__(
        self,
        sources: list[SourceRows],
        interleaving: Interleaving,
        *,
        length: int,
        labels: list[str],
        sequence_length: int,
        name: str,
        hints: Hints | None,
    ):
        self.sources, self.sequence_length, self.name = sources, sequence_length, name
        self._hints = hints
        self._interleaving = interleaving
        self._length = length
        self.labels = labels

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
        source, number = self._interleaving.locate(index)
        row = self.sources[source].row(number)
        return row if self._hints is None else row._replace(hints=self._hints[index])  # type: ignore[arg-type]

    def describe(self, index: int) -> str:
        """Return a text that names the source of a row and the parts of documents in it."""
        source, row = self._interleaving.locate(index)
        return f"{self.labels[source]}: {self.sources[source].describe(row)}"

    def pieces(self, index: int) -> tuple[str, list[str]]:
        """Return the source of a row and the names of the parts of documents in it."""
        source, row = self._interleaving.locate(index)
        return self.labels[source], self.sources[source].piece_names(row)

    def counts(self, rows: int) -> list[int]:
        """Return how many of the first `rows` rows each source gives."""
        return self._interleaving.counts(rows)

    def parts(self, rows: int) -> list["Rows"]:
        """Return those of the first `rows` rows that each source gives, without the hints of a teacher."""
        counts = self._interleaving.counts(min(rows, len(self)))
        return [
            Rows(
                [source],
                Interleaving((1,)),
                length=count,
                labels=[label],
                sequence_length=self.sequence_length,
                name=self.name,
                hints=None,
            )
            for source, label, count in zip(self.sources, self.labels, counts, strict=True)
        ]


def open_stores(
    config: DataConfig, *, progress: Callable[[Source], Progress] | None = None, rebuild: bool = False
) -> tuple[TokenStore, ...]:
    """Return the token stores of all sources, and tokenise those that the cache lacks, or all with `rebuild`.

    A store does not change when the files of its source change. `progress` gives what is told how far a source is.
    """
    return tuple(
        open_store(source, config.tokenizer, progress=progress and progress(source), rebuild=rebuild)
        for source in config.sources
    )


def open_rows(
    config: DataConfig,
    *,
    split: Split,
    sequence_length: int,
    seed: int,
    num_epochs: int | None = None,
    stores: Sequence[TokenStore] | None = None,
    hints: Hints | None = None,
) -> Rows:
    """Return the rows of a split, from `stores` or else from the stores of the current text, with their `hints`.

    Endless rows of a mixture are interleaved by its weights. With `num_epochs` they are interleaved in proportion to
    the sources' sizes, so that every row occurs exactly that often.
    """
    if sequence_length < 1:
        raise ValueError(f"{sequence_length=} must be at least 1.")
    if num_epochs is not None and num_epochs < 1:
        raise ValueError(f"{num_epochs=} must be at least 1, or None for endless rows.")
    if seed < 0:
        raise ValueError(f"{seed=} must not be negative.")
    stores = open_stores(config) if stores is None else stores
    sources = [
        _source_rows(config, number, store, split=split, sequence_length=sequence_length, seed=(seed, number))
        for number, store in enumerate(stores)
    ]
    if num_epochs is None:
        interleaving, length = by_weight(_row_weights(config, sources, sequence_length)), sys.maxsize
    else:
        interleaving = Interleaving(tuple(source.rows_per_epoch for source in sources))
        length = num_epochs * sum(interleaving.shares)
    return Rows(
        sources,
        interleaving,
        length=length,
        labels=_labels(config),
        sequence_length=sequence_length,
        name=f"{split}, {seed=}",
        hints=hints,
    )


def stream_of(config: DataConfig, stores: Sequence[TokenStore], *, sequence_length: int, seed: int) -> str:
    """Return the name of a stream: all that decides its rows, whatever the paths of its text.

    Streams that differ in their text alone have names that differ at the end alone.
    """
    text = "-".join(store.digest for store in stores)
    examples = "" if config.examples == NextTokens() else f", {config.examples}"
    return (
        f"{sequence_length} tokens by {config.tokenizer.identity()}, {config.packing}, {seed=}, "
        f"{config.source.describe_shares()}, validation_fraction={config.validation_fraction}{examples}, text {text}"
    )


def _source_rows(
    config: DataConfig, number: int, store: TokenStore, *, split: Split, sequence_length: int, seed: tuple[int, int]
) -> SourceRows:
    source, task = config.sources[number], config.source.tasks[number]
    if store.weights is not None and not config.examples.keeps_weights:
        raise ValueError(
            f"data.examples={config.examples} cannot keep the weights that a source gives its tokens: "
            "use NextTokens(), or a source without weights"
        )
    fraction = config.validation_fraction
    documents = documents_of(store, split=split, validation_fraction=fraction, divisible=source.divisible)
    examples = functools.partial(config.examples, vocab_size=config.tokenizer.vocab_size)
    return SourceRows(
        store,
        documents,
        packing=config.packing,
        examples=examples,
        sequence_length=sequence_length,
        seed=seed,
        task=task or 0,
    )


def _row_weights(config: DataConfig, sources: list[SourceRows], sequence_length: int) -> np.ndarray:
    """Return the shares of rows that give the configured shares of tokens.

    A source with more padding in its rows needs more rows.
    """
    shares = config.source.token_shares([source.tokens_per_epoch for source in sources])
    tokens_per_row = np.array([source.tokens_per_epoch / source.rows_per_epoch for source in sources])
    return shares / tokens_per_row


def _labels(config: DataConfig) -> list[str]:
    """Return every source with what is not its default, numbered where two are the same."""
    texts = [_label(source) for source in config.sources]
    return [text if texts.count(text) == 1 else f"{text} #{number}" for number, text in enumerate(texts)]


def _label(source: Source) -> str:
    if not dataclasses.is_dataclass(source):
        return repr(source)
    values = [(field, getattr(source, field.name)) for field in dataclasses.fields(source)]
    given = [f"{field.name}={value!r}" for field, value in values if value != field.default]
    return f"{type(source).__name__}({', '.join(given)})"
