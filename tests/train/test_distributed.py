"""How a process finds the others it trains with."""

import jax
import pytest

from jaxtrain.train import distributed

TOLD = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
TPU = {"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "tpu,cpu"}  # as importing JAX leaves them on a TPU machine
FOUND_OUT = [((), {})]


@pytest.fixture
def started(monkeypatch) -> list:
    """The calls of jax.distributed.initialize, in an environment with none of the variables."""
    calls = []
    for name in (*TOLD, *SLURM, *TPU, *distributed.TPU_HOSTS, "TPU_SKIP_MDS_QUERY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: calls.append((args, options)))
    return calls


ENVIRONMENTS = {
    "nothing": ({}, []),
    "three variables": (TOLD, [(("host:1234",), {"num_processes": 4, "process_id": 3})]),
    "the variables before SLURM": (TOLD | SLURM, [(("host:1234",), {"num_processes": 4, "process_id": 3})]),
    "a step of SLURM": (SLURM, FOUND_OUT),
    "a step of one task": (SLURM | {"SLURM_NTASKS": "1"}, []),
    "an allocation without a step": ({key: SLURM[key] for key in ("SLURM_JOB_ID", "SLURM_NTASKS")}, []),
    "a TPU pod in Kubernetes": (TPU | {"TPU_WORKER_HOSTNAMES": "a,b"}, FOUND_OUT),
    "one TPU host in Kubernetes": (TPU | {"TPU_WORKER_HOSTNAMES": "localhost"}, []),
    "a TPU pod of virtual machines": (TPU, FOUND_OUT),
    "a TPU machine without metadata": (TPU | {"TPU_SKIP_MDS_QUERY": "1"}, []),
    "a TPU machine used for its CPU": (TPU | {"JAX_PLATFORMS": "cpu"}, []),
    "names of hosts without TPU chips": ({"TPU_WORKER_HOSTNAMES": "a,b"}, []),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_processes_are_joined_where_the_environment_tells_of_them(name, started, monkeypatch):
    environment, expected = ENVIRONMENTS[name]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.start()
    assert started == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_NUM_PROCESSES set but not JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID: set all"),
        (TOLD | {"JAX_PROCESS_ID": "first"}, "JAX_PROCESS_ID='first': must be a whole number"),
        (TOLD | {"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4: must be at least 0 and below JAX_NUM_PROCESSES=4"),
    ],
)
def test_a_wrong_variable_is_an_error_that_names_it(environment, message, started, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        distributed.start()
    assert started == []


def test_a_tpu_machine_that_knows_of_no_pod_trains_alone(started, monkeypatch, caplog):
    def fail():
        raise ConnectionError("no metadata server")

    for name, value in TPU.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "initialize", fail)
    distributed.start()
    assert "no metadata server" in caplog.text and "alone" in caplog.text


def test_joining_twice_does_nothing_the_second_time(started, monkeypatch):
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    distributed.start()
    assert started == []
