"""`jaxtrain eval RUN`: the validation losses of a run's checkpoint, or tasks of lm-eval (eval_tasks.py)."""

import argparse
from collections.abc import Iterable

import jax
from rich.console import Console
from rich.progress import track

from jaxtrain.cli.eval_tasks import check_task_arguments, run_tasks
from jaxtrain.cli.finished import open_run
from jaxtrain.train.evaluation import VALIDATION_LOSS, Named, described, label


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
        print(f"step {finished.step}: {label(VALIDATION_LOSS, name).replace('_', ' ')} {described(found)}")
        for source, part in found.sources.items():
            print(f"  {source}: {described(part)}")
    return 0


def _with_a_bar(batches: Iterable[Named], total: int) -> Iterable[Named]:
    """Show how many batches are done, on a terminal."""
    console = Console(stderr=True)
    shown = console.is_terminal and jax.process_index() == 0
    return track(batches, "evaluating", total=total, console=console, transient=True, disable=not shown)
