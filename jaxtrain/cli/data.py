"""`jaxtrain data CONFIG`: prepare the data of a run, and show what the run reads of it."""

import argparse
from collections.abc import Iterator

import numpy as np
from rich.console import Console

from jaxtrain.cli.config_file import load
from jaxtrain.cli.data_streams import Stores, Stream, batches_of_an_evaluation, evaluated, origin, streams
from jaxtrain.config import TrainConfig
from jaxtrain.data import Rows, Tokenizer
from jaxtrain.data.summary import SourceSummary, summaries


def run(arguments: argparse.Namespace) -> int:
    if arguments.rows < 0:
        raise ValueError(f"--rows={arguments.rows}: must not be negative")
    config: TrainConfig = load(arguments.config, arguments.set, import_from=arguments.import_from).config
    console = Console()
    stores = Stores(console, rebuild=arguments.rebuild)
    for stream in streams(config, stores):
        for line in description(stream, config, stores, rows=arguments.rows):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def description(stream: Stream, config: TrainConfig, stores: Stores, *, rows: int) -> Iterator[str]:
    """Yield the lines about a stream: a paragraph for each source, what evaluations read, then the first rows."""
    which = "phase" if len(stream.phases) == 1 else "phases"
    yield (
        f"{which} {', '.join(map(str, stream.phases))}: {stream.steps:,} steps read {stream.rows_read:,} rows "
        f"of {stream.rows.sequence_length:,} tokens"
    )
    found = stream.summaries
    for summary in found:
        yield f"\n{summary.label}"
        yield from _of_source(summary, share=summary.tokens_read / sum(each.tokens_read for each in found))
    if config.validation or (stream.data.validation_fraction and batches_of_an_evaluation(config)):
        for name, validation in evaluated(config, stream, stores).items():
            yield from _of_evaluation(name, validation.rows, stream, config)
    for number in range(min(rows, stream.rows_read)):
        yield f"\nrow {number}: {stream.rows.pieces(number)[0]}"
        yield from shown_row(stream.rows, number, stream.data.tokenizer)
    yield ""


def _of_source(summary: SourceSummary, *, share: float) -> Iterator[str]:
    training, validation = summary.training, summary.validation
    yield f"  training    {training.documents:,} documents, {training.tokens:,} tokens"
    yield f"  validation  {validation.documents:,} documents, {validation.tokens:,} tokens"
    yield f"  the run     {summary.epochs:.3g} epochs, {summary.tokens_read:,} tokens, {share:.1%} of all that it reads"
    yield from _of_text(summary, every="an epoch, ")


def _of_text(summary: SourceSummary, *, every: str) -> Iterator[str]:
    if summary.with_loss < 1:
        yield f"  loss        on {summary.with_loss:.1%} of the tokens"
    yield (
        f"  lengths     median {summary.median_length:,} tokens, longest {summary.longest:,}; {summary.cut:.1%} of the "
        "documents are longer than a row"
    )
    yield f"  rows        {summary.rows_per_epoch:,} {every}{summary.padding:.1%} padding"
    yield f"  tokens      {origin([summary])}"


def _of_evaluation(name: str, rows: Rows, stream: Stream, config: TrainConfig) -> Iterator[str]:
    """Yield how many rows of a validation set an evaluation reads. A set of its own also has its sources' lines."""
    batches = batches_of_an_evaluation(config)
    read = sorted({min(len(rows), batches * size) for size in stream.batch_sizes})
    shown = " or ".join("all" if count == len(rows) else f"{count:,}" for count in read)
    how = f"an evaluation of the run reads {shown}" if batches else "no hook of the run evaluates; `jaxtrain eval` does"
    yield f"\n{f'validation set {name}' if name else 'held-out text'}: {len(rows):,} rows; {how}"
    for own in config.validation:
        if own.name == name:
            for summary in summaries(own.read_as(stream.data), rows, rows_read=len(rows)):
                yield f"\n{summary.label}"
                yield f"  text        {summary.training.documents:,} documents, {summary.training.tokens:,} tokens"
                yield from _of_text(summary, every="in all, ")


def shown_row(rows: Rows, number: int, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the pieces of a row, each with its texts and the weight of the loss on them."""
    row = rows[number]
    tokens, targets, weights, segments = (np.asarray(leaf) for leaf in row[:4])
    for segment, name in enumerate(rows.pieces(number)[1], start=1):
        here = np.flatnonzero(segments == segment)
        yield f"  {name}"
        shifted = np.array_equal(tokens[here][1:], targets[here][:-1])
        if shifted:  # each token asks for the next one: show every token once
            yield f"    given       {_text(tokens[here][:1], tokenizer)}"
        else:
            yield f"    shown       {_text(tokens[here], tokenizer)}"
        for stretch in np.split(here, np.flatnonzero(np.diff(weights[here])) + 1):
            weight = weights[stretch[0]]
            if shifted or weight:
                yield f"    weight {weight:<4g} {_text(targets[stretch], tokenizer)}"
    if padding := int((segments == 0).sum()):
        yield f"  {padding} of padding"


def _text(ids: np.ndarray, tokenizer: Tokenizer) -> str:
    """Return the text of ids between quotation marks, and the ids that have none."""
    end = tokenizer.end_of_document_id
    text = tokenizer.decode(ids[ids != end])
    parts = [repr(text)] if text else [] if (ids == end).all() else [f"ids {ids.tolist()}"]
    return " ".join(parts + ["<end of document>"] * int((ids == end).sum()))
