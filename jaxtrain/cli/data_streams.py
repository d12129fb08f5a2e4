"""The data of a run, prepared with a progress bar: every text that it reads, cut to rows of one length.

Validation sets are texts of their own, cut to the rows of the phases that they are evaluated in.
"""

import datetime
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxtrain.config import TrainConfig
from jaxtrain.data import DataConfig, Rows, Source, open_rows, open_stores, stream_of
from jaxtrain.data.store import TokenStore
from jaxtrain.data.summary import SourceSummary, summaries
from jaxtrain.train.evaluation import ValidationRows, validation_sets

SECONDS = 10  # between the lines that a file or the log of a job gets in place of a bar


class Stream(NamedTuple):
    """Rows that several phases may read, one where another stopped."""

    phases: list[int]
    data: DataConfig
    rows: Rows
    rows_read: int
    steps: int
    batch_sizes: tuple[int, ...]

    @property
    def stores(self) -> list[TokenStore]:
        return [source.store for source in self.rows.sources]

    @property
    def summaries(self) -> list[SourceSummary]:
        return summaries(self.data, self.rows, rows_read=self.rows_read)


class Stores:
    """Opens the token stores of data, each once. Tokenises what the cache lacks, or all of it with `rebuild`."""

    def __init__(self, console: Console, *, rebuild: bool = False):
        self._console, self._rebuild = console, rebuild
        self._opened: list[tuple[DataConfig, tuple[TokenStore, ...]]] = []

    def __call__(self, data: DataConfig) -> tuple[TokenStore, ...]:
        found = next((stores for known, stores in self._opened if known == data), None)
        if found is None:
            with Tokenising(self._console) as progress:
                found = open_stores(data, progress=progress.of_source, rebuild=self._rebuild)
            self._opened.append((data, found))
        return found


def streams(config: TrainConfig, open_all: Stores) -> list[Stream]:
    """Return the streams of a run in the order in which they begin."""
    found: dict[str, Stream] = {}
    for number, phase in enumerate(config.phases):
        data = phase.data or config.data
        stores = open_all(data)
        length, seed = phase.sequence_length, config.seed
        name = stream_of(data, stores, sequence_length=length, seed=seed)
        before = found.get(name)
        found[name] = Stream(
            [*(before.phases if before else []), number],
            data,
            before.rows if before else open_rows(data, split="train", stores=stores, sequence_length=length, seed=seed),
            (before.rows_read if before else 0) + phase.steps * phase.batch_size,
            (before.steps if before else 0) + phase.steps,
            (*(before.batch_sizes if before else ()), phase.batch_size),
        )
    return list(found.values())


def evaluated(config: TrainConfig, stream: Stream, open_all: Stores) -> dict[str, ValidationRows]:
    """Return what evaluations read in the phases of a stream, as `validation_sets` does."""
    data, sets = stream.data, config.validation
    of_sets = {own.name: open_all(own.read_as(data)) for own in sets}
    length = stream.rows.sequence_length
    return validation_sets(data, sets, sequence_length=length, stores=stream.stores, of_sets=of_sets)


def batches_of_an_evaluation(config: TrainConfig) -> int:
    """Return how many batches the hooks of a run evaluate on at most, 0 where none evaluates."""
    return max((hook.validation_batches for hook in config.hooks), default=0)


def telling_lines(stream: Stream) -> Iterator[str]:
    """Yield how much text there is and where it comes from, and how often the run reads it."""
    found = stream.summaries
    training, validation = ([getattr(each, name) for each in found] for name in ("training", "validation"))
    yield (
        f"{sum(part.documents for part in training):,} documents, {sum(part.tokens for part in training):,} tokens "
        f"to train on, {sum(part.tokens for part in validation):,} to validate on ({origin(found)})"
    )
    epochs = f"{found[0].epochs:.3g} epochs"
    if len(found) > 1:
        epochs = "epochs " + ", ".join(f"{each.epochs:.3g} of {each.label}" for each in found)
    rows = sum(each.rows_per_epoch for each in found)
    padding = sum(each.padding * each.rows_per_epoch for each in found) / rows
    tokens = sum(each.tokens_read for each in found)
    yield f"the run's {stream.steps:,} steps read {tokens:,} tokens: {epochs}; {padding:.1%} of the rows is padding"


def origin(found: list[SourceSummary]) -> str:
    """Return whether the tokens of sources are new or come from the cache, and since when they are there."""
    if all(each.store.is_new for each in found):
        return "tokenised now"
    oldest = min(each.store.written for each in found)
    when = datetime.datetime.fromtimestamp(oldest).strftime("%Y-%m-%d %H:%M")
    return f"{'partly ' if any(each.store.is_new for each in found) else ''}from the cache, tokenised {when}"


class Tokenising:
    """Shows, in a `with`, how far each source is tokenised: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, console: Console):
        self._console = console
        self._live = console.is_interactive or console.is_jupyter
        columns = [TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[amount]}")]
        timing = [TimeElapsedColumn(), TimeRemainingColumn(compact=True)]
        self._bar = Progress(*columns, *timing, console=console, disable=not self._live or console.quiet)

    def __enter__(self) -> "Tokenising":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def of_source(self, source: Source) -> Callable[[int, int], None]:
        """Return what is told the documents and tokens of a source so far. Nothing is shown before it is called."""
        task: TaskID | None = None
        due = time.monotonic() + SECONDS
        text = f"tokenising {source}"

        def progress(documents: int, tokens: int) -> None:
            nonlocal task, due
            amount = f"{documents:,} documents, {tokens:,} tokens"
            if self._live:
                if task is None:
                    task = self._bar.add_task(text, total=source.expected_documents(), amount=amount)
                self._bar.update(task, completed=documents, amount=amount)
            elif time.monotonic() >= due:
                due = time.monotonic() + SECONDS
                self._console.print(f"{text}: {amount}", markup=False, highlight=False, soft_wrap=True)

        return progress
