"""A disk that takes no more: the run stops with a clear error, and goes on once there is room."""

import contextlib
import gc
import resource
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import runs

from jaxtrain.cli.main import main
from jaxtrain.train.checkpoint import Checkpoints
from jaxtrain.train.folder import SaveError
from jaxtrain.train.metrics import TensorBoard


@contextlib.contextmanager
def _files_no_larger_than(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def _abandoned_writes() -> Iterator[None]:
    """Orbax drops the writes that were to follow a failed one; Python says so whenever it collects them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
        yield
        gc.collect()


def test_a_save_that_fails_ends_the_command_with_one_clear_message(data, whole, tmp_path, capfd):
    """The limit on the size of a file stands in for a full disk: it needs no privileges."""
    folder = tmp_path / "run"
    config = runs.write_config(runs.tiny_run(data, steps=5), tmp_path / "tiny.gin")
    command = ["train", str(config), "--run", str(folder)]
    longer = [*command, "--resume", "--set", "phases[0].steps=12"]
    assert main(command) == 0
    capfd.readouterr()
    with _files_no_larger_than(16_000), _abandoned_writes():
        assert main(longer) == 1
    message = capfd.readouterr().err
    assert message.startswith(
        f"jaxtrain: stopped: checkpoint 10 could not be written to {folder}/checkpoints: File too"
    )
    assert "What was saved before is unharmed" in message and message.count("\n") == 1
    assert Checkpoints(folder / "checkpoints").latest_sound() == 5
    assert main(longer) == 0
    assert runs.losses(folder) == whole[:12]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system with room for one checkpoint and not for two, where tests may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1000k", "tmpfs", disk], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting takes privileges; the test above covers the same path")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_leaves_the_last_checkpoint_to_go_on_from(data, whole, small_disk):
    folder = small_disk / "run"
    config = runs.tiny_run(data, writers=(TensorBoard(),))
    for _ in range(2):  # a second try without making room loses nothing
        with _abandoned_writes(), pytest.raises(SaveError, match="No space left on device"):
            runs.train(config, folder)
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert runs.train(config, folder).finished
    assert runs.losses(folder) == whole[:12]
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["10", "12"]
