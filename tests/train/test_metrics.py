"""One line a step, whatever happens to the process in between; and what goes elsewhere goes on there, too."""

import contextlib
import math
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from messages import refused
from runs import record_of_the_disk
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxtrain.train.evaluation import Evaluation, described, perplexity
from jaxtrain.train.folder import RunFolder, SaveError
from jaxtrain.train.metrics import Metrics, read_metrics
from jaxtrain.train.writers import TensorBoard, WeightsAndBiases


def _write(folder: Path, steps: range, *, from_step: int, writers: tuple = ()) -> Metrics:
    metrics = Metrics(folder, writers, from_step=from_step, writes=True)
    for step in steps:
        metrics.write(step, {"loss": step / 2})
    return metrics


def test_a_resumed_run_has_one_line_a_step(tmp_path):
    killed = _write(tmp_path, range(1, 6), from_step=0)  # not closed, and nothing is lost
    _write(tmp_path, range(4, 8), from_step=3).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": step, "loss": step / 2} for step in range(1, 8)]
    killed.close()


@pytest.mark.parametrize("nats, shown", [(0.0, "1.00"), (709.0, "8.22e+307"), (710.0, "inf"), (math.nan, "nan")])
def test_perplexity_of_a_diverged_run_is_infinite(nats, shown):
    assert f"{perplexity(nats):{'.2e' if len(shown) > 4 else '.2f'}}" == shown


def test_an_evaluation_is_told_with_the_weight_of_its_tokens():
    text = described(Evaluation(0.0, 1234.5, bytes=10))
    assert text == "0.0000 nats a token, perplexity 1.00, 0.0000 bits a byte, over tokens of total weight 1,234.5"


def test_a_last_line_cut_off_in_the_middle_is_left_out(tmp_path):
    _write(tmp_path, range(1, 4), from_step=0).close()
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-1])
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3]  # all of it but its end is there
    for cut in (2, 4, len(whole.splitlines()[-1])):  # the last character, some of them, nearly all
        path.write_text(whole[:-cut])
        assert [record["step"] for record in read_metrics(path)] == [1, 2]
        _write(tmp_path, range(3, 5), from_step=2).close()
        assert [record["step"] for record in read_metrics(path)] == [1, 2, 3, 4]


def test_small_files_are_on_the_disk_before_they_are_relied_on(tmp_path, monkeypatch):
    folder, done = RunFolder(tmp_path), record_of_the_disk(monkeypatch)
    folder.write_config("whole")
    (_, written), (_, *moved), last = done
    assert moved == [written, str(folder.config)] and last == ("fsync", str(tmp_path))
    with contextlib.closing(_write(tmp_path, range(1, 6), from_step=0)) as metrics:
        assert ("fsync", str(tmp_path)) in done[3:]  # which has the name of the file from then on
        del done[:]
        metrics.flush()  # as before a checkpoint
        assert done == [("fsync", str(folder.metrics))]


def test_only_the_process_that_is_told_to_writes(tmp_path):
    metrics = Metrics(tmp_path / "run", (TensorBoard(),), from_step=0, writes=False)
    metrics.write(1, {"loss": 1.0})
    metrics.flush()
    metrics.close()
    assert not (tmp_path / "run").exists()


def _events(path: Path) -> list[Event]:
    """Read a file of TFRecords: length, its checksum, data, its checksum."""
    content, events = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[12 + length + 4 :]
    return events


def test_tensorboard_shows_a_resumed_run_once(tmp_path):
    killed = _write(tmp_path, range(1, 6), from_step=0, writers=(TensorBoard(),))
    killed.flush()
    _write(tmp_path, range(4, 8), from_step=3, writers=(TensorBoard(),)).close()
    before, after = sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: len(_events(path)), reverse=True)
    points = [(event.step, event.summary.value[0].simple_value) for event in _events(before) if event.summary.value]
    assert points == [(step, step / 2) for step in range(1, 6)]
    start = next(event for event in _events(after) if event.HasField("session_log"))
    assert (start.step, start.session_log.status) == (4, SessionLog.START)  # TensorBoard drops earlier points from here
    assert [event.step for event in _events(after) if event.summary.value] == [4, 5, 6, 7]
    killed.close()


def test_a_resumed_run_goes_on_in_the_same_run_of_weights_and_biases(tmp_path, monkeypatch):
    begun, calls = [], []

    def init(**given):
        begun.append(given)
        return SimpleNamespace(
            log=lambda numbers, *, step: calls.append((step, numbers)), finish=lambda: calls.append("finish")
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for first in (1, 3):
        metrics = _write(
            tmp_path, range(first, first + 2), from_step=first - 1, writers=(WeightsAndBiases(project="p"),)
        )
        metrics.flush()
        metrics.close()
    identity = begun[0].pop("id")
    assert len(identity) >= 8 and begun[1].pop("id") == identity
    assert begun == 2 * [{"project": "p", "name": tmp_path.name, "dir": str(tmp_path), "resume": "allow"}]
    steps = [(step, {"loss": step / 2}) for step in range(1, 5)]
    assert calls == [*steps[:2], "finish", *steps[2:], "finish"]


def test_another_run_is_another_run_of_weights_and_biases(tmp_path, monkeypatch):
    identities = []

    def init(*, id, **_):
        identities.append(id)
        return SimpleNamespace(finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for name in ("one", "two", "one"):
        RunFolder(tmp_path / name).clear()  # as --overwrite does
        _write(tmp_path / name, range(0), from_step=0, writers=(WeightsAndBiases(project="p"),)).close()
    assert len(set(identities)) == 3


def test_weights_and_biases_is_asked_for_by_name_where_it_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"jaxtrain\[wandb\]"):
        _write(tmp_path, range(0), from_step=0, writers=(WeightsAndBiases(project="p"),))


class _Full:
    def open(self, folder, *, from_step):
        return self

    def write(self, step, numbers):
        raise OSError(28, "No space left on device")

    def close(self):
        pass


def test_a_number_that_is_not_finite_is_null_in_the_file_and_not_a_number_when_read(tmp_path):
    with contextlib.closing(Metrics(tmp_path, (), from_step=0, writes=True)) as metrics:
        metrics.write(1, {"loss": math.nan, "gradient_norm": math.inf, "weight": 2.0})
    path = tmp_path / "metrics.jsonl"
    assert path.read_text() == '{"step": 1, "loss": null, "gradient_norm": null, "weight": 2.0}\n'
    (record,) = read_metrics(path)
    assert math.isnan(record["loss"]) and record["weight"] == 2.0


def test_samples_of_steps_that_are_made_anew_are_dropped(tmp_path):
    folder = RunFolder(tmp_path)
    folder.cut_samples(step=0)
    for step in (5, 10, 15):
        folder.add_sample(step, f"text\r\n{step}")
    first = folder.samples.read_bytes().split(b"--- step 10")[0]
    folder.cut_samples(step=15)
    assert folder.samples.read_text().count("--- step") == 3
    folder.cut_samples(step=7)
    assert folder.samples.read_bytes() == first


def test_metrics_that_cannot_be_written_are_reported_with_the_reason(tmp_path):
    with (
        contextlib.closing(_write(tmp_path, range(0), from_step=0, writers=(_Full(),))) as metrics,
        refused(SaveError, "metrics", tmp_path, "No space left on device"),
    ):
        metrics.write(1, {"loss": 1.0})
