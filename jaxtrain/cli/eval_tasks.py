"""`jaxtrain eval RUN --tasks NAME,...`: tasks of lm-eval on a run's model, from lm-eval's own files or a user's.

lm-eval is an extra and is imported when tasks are asked for. The files of a task may name Python code, which lm-eval
runs: those that come with it, and those of the folders that `--task-folder` names. Data sets that are not on this
machine are fetched with `--download` alone.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from jaxtrain.cli.config_names import nearest
from jaxtrain.cli.finished import open_run
from jaxtrain.train.folder import write_whole

# Read once, when the libraries are imported: use no network, and draw no progress bars.
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
NO_BARS = ("HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")


def check_task_arguments(arguments: argparse.Namespace) -> None:
    """Raise ValueError where an option of tasks stands without tasks, or has a value out of range."""
    options = {
        "--task-folder": bool(arguments.task_folder),
        "--shots": arguments.shots is not None,
        "--limit": arguments.limit is not None,
        "--download": arguments.download,
        "--out": arguments.out is not None,
    }
    if arguments.tasks is None:
        if given := [name for name, is_given in options.items() if is_given]:
            raise ValueError(f"{given[0]} is about tasks of lm-eval: name them, --tasks NAME,...")
        return
    if arguments.batches is not None:
        raise ValueError("--batches is about the validation loss, which --tasks replaces: leave one of them out")
    for name, value, least in (("--shots", arguments.shots, 0), ("--limit", arguments.limit, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name}={value}: must be at least {least}")
    for folder in arguments.task_folder:
        if not Path(folder).is_dir():
            raise ValueError(f"--task-folder {folder}: is no folder; name the one with the task's .yaml file")


def run_tasks(arguments: argparse.Namespace) -> int:
    """Evaluate the tasks and print lm-eval's table of the results."""
    lm_eval = _lm_eval(download=arguments.download)
    names = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
    manager, tasks = _load(names, arguments.task_folder)
    finished = open_run(arguments)
    from jaxtrain.cli.harness import RunModel  # imports lm_eval

    with _one_line(f"--tasks {arguments.tasks}"):
        results = lm_eval.simple_evaluate(
            model=RunModel(finished),
            tasks=tasks,
            num_fewshot=arguments.shots,
            limit=arguments.limit,
            log_samples=False,
            task_manager=manager,
        )
    if jax.process_index() == 0:
        print(f"step {finished.step}")
        _report(results, arguments.out)
    return 0


def _lm_eval(*, download: bool) -> ModuleType:
    """Import lm-eval. Without `download` the libraries that it reads data sets with do not use the network."""
    if not download:
        os.environ.update(dict.fromkeys(OFFLINE, "1"))
    if not sys.stderr.isatty():
        os.environ.update(dict.fromkeys(NO_BARS, "1"))
    try:
        import lm_eval  # type: ignore[import-not-found]  # an extra, which may not be installed
    except ImportError as error:
        raise ValueError("--tasks needs the package lm-eval: install jaxtrain[eval]") from error
    return lm_eval


def _load(names: Sequence[str], folders: Sequence[str]) -> tuple[Any, list]:
    """Return lm-eval's manager of task files, and the tasks and groups of these names, with their data.

    Raises:
        ValueError: there is no such task, with the nearest name, or its file or its data cannot be read.
    """
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

    if not names:
        raise ValueError("--tasks names none: write --tasks NAME,...")
    with _one_line(f"--task-folder {', '.join(folders)}"):
        manager = TaskManager(include_path=list(folders), include_defaults=False)
        if set(names) - set(manager.all_tasks):  # lm-eval's own files are many
            manager = TaskManager(include_path=list(folders))
    for name in names:
        if name not in manager.all_tasks:
            raise ValueError(f"--tasks {name}: there is no such task{nearest(name, manager.all_tasks)}")
    remedy = "" if os.environ.get(OFFLINE[0]) != "1" else "; where its data are not on this machine, pass --download"
    with _one_line(f"--tasks {','.join(names)}", remedy):
        loaded = manager.load(list(names))
    groups = loaded["groups"]
    below = {child for children in loaded["group_map"].values() for child in children}
    below |= {task.task_name for group in groups.values() for task in group.get_all_tasks()}
    return manager, [part for name, part in (groups | loaded["tasks"]).items() if name not in below]


@contextmanager
def _one_line(what: str, remedy: str = "") -> Iterator[None]:
    """Turn an error of lm-eval, or of the code of a task, into a ValueError of one line. `--traceback` shows more."""
    try:
        yield
    except (ValueError, NotImplementedError, OSError, MemoryError) as error:
        if not remedy:
            raise
        raise ValueError(f"{what}: {error}{remedy}") from error
    except Exception as error:
        raise ValueError(f"{what}: {type(error).__name__}: {error}{remedy}") from error


def _report(results: dict[str, Any], out: str | None) -> None:
    from lm_eval.utils import (  # type: ignore[import-not-found]
        handle_non_serializable,
        make_table,
    )

    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    if out is not None:
        text = json.dumps(results, indent=1, default=handle_non_serializable, ensure_ascii=False)
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(out), text + "\n")
        print(f"wrote {out}", file=sys.stderr)
