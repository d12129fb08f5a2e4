"""Tables and MLflow: a resumed run goes on in the same place, and no writer ends a run that the network fails."""

import csv
import logging
import sys
from types import SimpleNamespace

import pytest
from messages import refused

from jaxtrain.train.folder import RunFolder
from jaxtrain.train.metrics import Metrics
from jaxtrain.train.writers import CSV, MLflow, WeightsAndBiases


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_has_a_row_a_step_and_a_column_for_each_number_however_late_it_comes(tmp_path):
    sink = CSV().open(tmp_path, from_step=0)
    sink.write(1, {"loss": 1.5})
    sink.write(2, {"loss": 0.1 + 0.2, "validation_loss": 2.5})
    sink.write(3, {"loss": 1e-30})
    sink.flush()
    assert _rows(tmp_path / "metrics.csv") == [
        {"step": "1", "loss": "1.5", "validation_loss": ""},
        {"step": "2", "loss": "0.30000000000000004", "validation_loss": "2.5"},
        {"step": "3", "loss": "1e-30", "validation_loss": ""},
    ]
    sink.close()


def test_a_resumed_table_has_no_step_twice_and_no_row_that_was_torn(tmp_path):
    """A row of step 12, of which a kill left the first digit, is not one of step 1."""
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,1.0\n2,2.0\n3,3.0\n1")
    sink = CSV().open(tmp_path, from_step=2)
    sink.write(3, {"loss": 4.0})
    sink.close()
    assert path.read_text() == "step,loss\n1,1.0\n2,2.0\n3,4.0\n"


def test_a_table_of_somebody_else_is_not_cut(tmp_path):
    (tmp_path / "metrics.csv").write_text("name,grade\nada,1\n")
    with refused(ValueError, tmp_path / "metrics.csv", "CSV"):
        CSV().open(tmp_path, from_step=0)
    assert (tmp_path / "metrics.csv").read_text() == "name,grade\nada,1\n"


class Server:
    """What MLflow's client does, in memory; it fails while it is `away`."""

    def __init__(self):
        self.experiments, self.runs, self.away = {}, {}, False

    def get_experiment_by_name(self, name):
        if self.away:
            raise RuntimeError("connection refused")
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name):
        self.experiments[name] = str(len(self.experiments))
        return self.experiments[name]

    def create_run(self, experiment_id, run_name):
        run_id = f"{run_name}-{len(self.runs)}"
        self.runs[run_id] = SimpleNamespace(experiment=experiment_id, numbers=[], status="RUNNING")
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def update_run(self, run_id, status):
        self.runs[run_id].status = status

    def log_batch(self, run_id, metrics):
        if self.away:
            raise RuntimeError("connection refused")
        assert len(metrics) <= 1000 and self.runs[run_id].status == "RUNNING"
        self.runs[run_id].numbers += [(m.step, m.key, m.value) for m in metrics]

    def set_terminated(self, run_id):
        self.runs[run_id].status = "FINISHED"


@pytest.fixture
def server(monkeypatch):
    made = Server()

    def metric(key, value, timestamp, step):
        return SimpleNamespace(key=key, value=value, timestamp=timestamp, step=step)

    module = SimpleNamespace(MlflowClient=lambda: made, entities=SimpleNamespace(Metric=metric))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return made


def _write(folder, steps):
    metrics = Metrics(folder, (MLflow(experiment="e"),), from_step=steps[0] - 1, writes=True)
    for step in steps:
        metrics.write(step, {"loss": step / 2})
    return metrics


def test_a_resumed_run_goes_on_in_the_same_run_of_mlflow(server, tmp_path):
    for steps in (range(1, 1500), range(1500, 1502)):
        _write(tmp_path / "run", steps).close()
    [run] = server.runs.values()
    assert run.numbers == [(step, "loss", step / 2) for step in range(1, 1502)]
    assert run.status == "FINISHED"
    RunFolder(tmp_path / "run").clear()  # as --overwrite does
    _write(tmp_path / "run", range(1, 2)).close()
    assert len(server.runs) == 2 and len(server.experiments) == 1


def test_a_server_that_is_away_ends_no_run_and_gets_the_numbers_later(server, tmp_path, caplog):
    metrics = _write(tmp_path, range(1, 3))
    server.away = True
    with caplog.at_level(logging.WARNING):
        metrics.flush()
    assert "connection refused" in caplog.text
    server.away = False
    metrics.close()
    assert [run.numbers for run in server.runs.values()] == [[(1, "loss", 0.5), (2, "loss", 1.0)]]


def test_mlflow_is_checked_before_a_run(server, monkeypatch):
    MLflow(experiment="e").check()
    server.away = True
    with refused(ValueError, "experiment='e'", "connection refused"):
        MLflow(experiment="e").check()
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with refused(ValueError, "jaxtrain[mlflow]"):
        MLflow(experiment="e").check()


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_weights_and_biases_needs_a_login_unless_it_is_offline(mode, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(login=lambda prompt: False))
    if mode == "offline":
        return WeightsAndBiases(project="p").check()
    with refused(ValueError, "wandb login", "WANDB_MODE=offline"):
        WeightsAndBiases(project="p").check()
