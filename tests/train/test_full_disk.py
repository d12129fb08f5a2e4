"""A disk that takes no more: the run stops with a clear error, and goes on once there is room."""

import contextlib
import gc
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import runs
from full_disk import files_no_larger_than
from messages import check, refusal, refused
from rich.console import Console

from jaxtrain.cli import bigram_record
from jaxtrain.cli.config_file import load
from jaxtrain.cli.main import main
from jaxtrain.cli.train import begin, prepare_data
from jaxtrain.train.checkpoint import Checkpoints
from jaxtrain.train.folder import RunFolder, SaveError
from jaxtrain.train.metrics import read_metrics
from jaxtrain.train.writers import TensorBoard


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
    longer = [*command, "--allow-config-change", "--set", "phases[0].steps=12"]
    assert main(command) == 0
    capfd.readouterr()
    with files_no_larger_than(16_000), _abandoned_writes():
        assert main(longer) == 1
    message = capfd.readouterr().err
    assert message.count("\n") == 1
    check(message, "jaxtrain: stopped: ", "checkpoint 10", folder / "checkpoints", "File too large")
    assert Checkpoints(folder / "checkpoints").latest_valid() == 5
    assert main(longer) == 0
    assert runs.losses(folder) == whole[:12]


def test_a_run_that_cannot_begin_is_one_clear_line(data, tmp_path, capsys):
    folder = tmp_path / "run"
    config = runs.write_config(runs.tiny_run(data), tmp_path / "tiny.gin")
    prepare_data(load(config).config, Console(quiet=True))
    with files_no_larger_than(100):
        line = refusal(capsys, "train", config, "--run", folder)
    check(line, folder, "File too large")
    assert not folder.exists()


def test_a_process_does_not_begin_where_the_first_one_cannot_write(data, tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("jaxtrain.train.distributed.anywhere", lambda failed: True)  # on the first
    with refused(SaveError, "another process"):
        begin(RunFolder(tmp_path / "run"), runs.tiny_run(data), None, overwrite=False)
    assert not (tmp_path / "run").exists()


def test_a_small_file_is_whole_or_as_it_was(tmp_path):
    folder = RunFolder(tmp_path)
    with files_no_larger_than(10), pytest.raises(OSError, match="File too large"):
        bigram_record.keep(folder, 1.5)
    assert list(tmp_path.iterdir()) == []
    bigram_record.keep(folder, 1.5)
    assert bigram_record.kept(read_metrics(folder.metrics)) == 1.5
    folder.write_config("before")
    with files_no_larger_than(10), pytest.raises(OSError, match="File too large"):
        folder.write_config("after" * 10)
    assert folder.config.read_text() == "before" and len(list(tmp_path.iterdir())) == 2


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
