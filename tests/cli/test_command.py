"""The console command, before any subcommand runs."""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxtrain.cli import main


@pytest.fixture
def started(monkeypatch) -> Iterator[list]:
    """Return what replaced the process, and what glibc is told then."""
    found = []
    monkeypatch.setattr(os, "execv", lambda *call: found.append((*call, os.environ["GLIBC_TUNABLES"])))
    monkeypatch.setattr(os, "environ", {"PATH": "p"})
    monkeypatch.setattr(main, "main", lambda: 0)
    for name in ("stdout", "stderr"):  # which the command replaces
        monkeypatch.setattr(sys, name, getattr(sys, name))
    handler, threshold = signal.getsignal(signal.SIGINT), gc.get_threshold()
    yield found
    signal.signal(signal.SIGINT, handler)
    gc.set_threshold(*threshold)
    gc.unfreeze()


def _type(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bin/jaxtrain", *words])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "bin/jaxtrain", *words])


def _has(monkeypatch, device: str) -> None:
    """Have the machine one file below /dev."""
    monkeypatch.setattr(Path, "glob", lambda folder, name: [device] if (folder / device).match(f"/dev/{name}") else [])


def test_training_starts_again_as_it_was_called_with_memory_kept(started, monkeypatch):
    _type(monkeypatch, "train", "a.gin")
    _has(monkeypatch, "vfio/vfio")
    main.command()
    arguments = [sys.executable, "-X", "dev", "bin/jaxtrain", "train", "a.gin"]
    assert started == [(sys.executable, arguments, main.KEEP_MEMORY["GLIBC_TUNABLES"])]


@pytest.mark.parametrize("device", ["nvidia0", "accel0", "vfio/0", "kfd"])
def test_training_on_an_accelerator_starts_at_once(started, monkeypatch, device):
    _type(monkeypatch, "train", "a.gin")
    _has(monkeypatch, device)
    assert main.command() == 0 and not started


def test_what_the_user_chose_for_glibc_stays(started, monkeypatch):
    _type(monkeypatch, "train", "a.gin")
    _has(monkeypatch, "vfio/vfio")
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    assert main.command() == 0 and not started


def test_other_commands_run_at_once(started, monkeypatch):
    _type(monkeypatch, "plot", "runs/a")
    assert main.command() == 0 and not started


def test_what_is_imported_is_seldom_searched_for_garbage(started, monkeypatch):
    _type(monkeypatch, "plot", "runs/a")
    during: list[tuple[int, int]] = []
    monkeypatch.setattr(main, "main", lambda: during.append((gc.get_threshold()[0], gc.get_freeze_count())) or 0)
    main.command()
    assert during == [(main.OBJECTS_BETWEEN_COLLECTIONS, 0)]
    assert gc.get_freeze_count() > 0  # nothing is searched at the end


@pytest.mark.parametrize(("device", "platforms"), [("nvidia0", None), ("vfio/0", None), ("vfio/vfio", "cpu")])
def test_jax_is_told_where_no_accelerator_can_be_reached(started, monkeypatch, device, platforms):
    _type(monkeypatch, "plot", "runs/a")
    _has(monkeypatch, device)
    main.command()
    assert os.environ.get("JAX_PLATFORMS") == platforms


def test_platforms_that_the_user_chose_stay(started, monkeypatch):
    _type(monkeypatch, "plot", "runs/a")
    os.environ["JAX_PLATFORMS"] = "tpu"
    main.command()
    assert os.environ["JAX_PLATFORMS"] == "tpu"
