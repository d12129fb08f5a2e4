"""The data of a run, prepared with a progress bar: every text that it reads, cut to rows of one length."""

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

SECONDS = 10  # between the lines that a file or the log of a job gets in place of a bar


class Stream(NamedTuple):
    """Rows that several phases may read, one where another stopped."""

    phases: list[int]
    data: DataConfig
    rows: Rows
    rows_read: int
    steps: int

    @property
    def stores(self) -> list[TokenStore]:
        return [source.store for source in self.rows.sources]

    @property
    def summaries(self) -> list[SourceSummary]:
        return summaries(self.data, self.rows, rows_read=self.rows_read)


def streams(config: TrainConfig, console: Console, *, rebuild: bool = False) -> list[Stream]:
    """Return the streams of a run in the order in which they begin. Tokenise what the cache lacks, or all of it."""
    opened: list[tuple[DataConfig, tuple[TokenStore, ...]]] = []
    found: dict[str, Stream] = {}
    for number, phase in enumerate(config.phases):
        data = phase.data or config.data
        stores = next((stores for known, stores in opened if known == data), None)
        if stores is None:
            with Tokenising(console) as progress:
                stores = open_stores(data, progress=progress.of_source, rebuild=rebuild)
            opened.append((data, stores))
        length, seed = phase.sequence_length, config.seed
        name = stream_of(data, stores, sequence_length=length, seed=seed)
        before = found.get(name)
        found[name] = Stream(
            [*(before.phases if before else []), number],
            data,
            before.rows if before else open_rows(data, split="train", stores=stores, sequence_length=length, seed=seed),
            (before.rows_read if before else 0) + phase.steps * phase.batch_size,
            (before.steps if before else 0) + phase.steps,
        )
    return list(found.values())


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
