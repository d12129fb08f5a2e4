"""`jaxtrain eval RUN`: the validation losses of a run's checkpoint, or tasks of lm-eval (eval_tasks.py)."""

import argparse
from collections.abc import Iterable

import jax
from rich.console import Console
from rich.progress import track

from jaxtrain.cli.eval_tasks import check_task_arguments, run_tasks
from jaxtrain.cli.finished import open_run
from jaxtrain.train.evaluation import VALIDATION_LOSS, Evaluation, Named, label, perplexity


def run(arguments: argparse.Namespace) -> int:
    if arguments.batches is not None and arguments.batches < 1:
        raise ValueError(f"--batches={arguments.batches}: must be at least 1")
    check_task_arguments(arguments)
    if arguments.tasks is not None:
        return run_tasks(arguments)
    finished = open_run(arguments)
    for name, rows in finished.validation_sets.items():
        found = finished.evaluate_on(rows, batches=arguments.batches, track=_with_a_bar)
        if jax.process_index() != 0:
            continue
        print(f"step {finished.step}: {_described(name, found)}")
        for source, part in found.sources.items():
            print(f"  {source}: {_described('', part)}")
    return 0


def _described(name: str, found: Evaluation) -> str:
    what = label(VALIDATION_LOSS, name).replace("_", " ")
    bits = "" if found.bits_per_byte is None else f", {found.bits_per_byte:.4f} bits a byte"
    return (
        f"{what} {found.loss:.4f} nats a token, perplexity {perplexity(found.loss):.2f}{bits}, "
        f"over {found.weight:,.0f} tokens"
    )


def _with_a_bar(batches: Iterable[Named], total: int) -> Iterable[Named]:
    """Show how many batches are done, on a terminal."""
    console = Console(stderr=True)
    shown = console.is_terminal and jax.process_index() == 0
    return track(batches, "evaluating", total=total, console=console, transient=True, disable=not shown)
