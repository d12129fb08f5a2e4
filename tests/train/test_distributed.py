"""How a process finds the others it trains with, and loses them."""

import os
import signal
import subprocess
import sys
import threading
import types

import jax
import pytest
import runs
from messages import refused

from jaxtrain.train import distributed, peers

TOLD = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
TPU = {"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "tpu,cpu"}  # as importing JAX leaves them on a TPU machine
DETECTED = [("found:5678", 2, 1, (0,))]
JOINED = [("host:1234", 4, 3, None)]


@pytest.fixture
def started(monkeypatch) -> list:
    """The processes that were to be joined, in an environment with none of the variables; JAX would detect DETECTED."""
    calls = []
    for name in (*TOLD, *SLURM, *TPU, *distributed.TPU_HOSTS, "TPU_SKIP_MDS_QUERY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed, "_join", lambda *cluster_and_remedy: calls.append(cluster_and_remedy[:-1]))
    monkeypatch.setattr(distributed, "_detected", lambda: DETECTED[0])
    return calls


ENVIRONMENTS = {
    "nothing": ({}, []),
    "three variables": (TOLD, JOINED),
    "the variables before SLURM": (TOLD | SLURM, JOINED),
    "a step of SLURM": (SLURM, DETECTED),
    "a step of one task": (SLURM | {"SLURM_NTASKS": "1"}, []),
    "an allocation without a step": ({key: SLURM[key] for key in ("SLURM_JOB_ID", "SLURM_NTASKS")}, []),
    "a TPU pod in Kubernetes": (TPU | {"TPU_WORKER_HOSTNAMES": "a,b"}, DETECTED),
    "one TPU host in Kubernetes": (TPU | {"TPU_WORKER_HOSTNAMES": "localhost"}, []),
    "a TPU pod of virtual machines": (TPU, DETECTED),
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
    ("environment", "facts"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, ("JAX_NUM_PROCESSES", "JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID")),
        (TOLD | {"JAX_PROCESS_ID": "first"}, ("JAX_PROCESS_ID='first'",)),
        (TOLD | {"JAX_PROCESS_ID": "4"}, ("JAX_PROCESS_ID=4", 0, "JAX_NUM_PROCESSES=4")),
    ],
    ids=["missing", "no number", "too large"],
)
def test_a_wrong_variable_is_an_error_that_names_it(environment, facts, started, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with refused(ValueError, *facts):
        distributed.start()
    assert started == []


def test_a_tpu_machine_that_knows_of_no_pod_trains_alone(started, monkeypatch, caplog):
    def fail():
        raise ConnectionError("no metadata server")

    for name, value in TPU.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "_detected", fail)
    distributed.start()
    assert "no metadata server" in caplog.text and "alone" in caplog.text


def test_joining_twice_does_nothing_the_second_time(started, monkeypatch):
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    distributed.start()
    assert started == []


def test_a_cluster_that_jax_does_not_find_is_an_error(monkeypatch):
    monkeypatch.setattr(jax._src.clusters.ClusterEnv, "auto_detect_unset_distributed_params", lambda *_: (None,) * 4)
    with pytest.raises(ValueError, match="JAX finds no cluster"):
        distributed._detected()


def test_processes_that_do_not_come_are_an_error_and_not_waited_for_for_ever(monkeypatch):
    watched = types.SimpleNamespace(relay=str)
    over = threading.Event()
    monkeypatch.setattr(peers, "watch", lambda index, count, remedy: watched)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: over.wait())
    monkeypatch.setattr(distributed, "ARRIVAL_SECONDS", 0.01)
    with refused(ValueError, "4 processes", "host:1234", "0.01 s", "process 3"):
        distributed._join("host:1234", 4, 3, None, str)
    over.set()


def test_all_but_the_first_reach_it_through_a_relay_and_are_watched(monkeypatch):
    calls = []

    class Watched:
        def relay(self, address):
            return f"relay to {address}"

        def meet(self, address, store):
            calls.append(address)
            return True

    monkeypatch.setattr(peers, "watch", lambda index, count, remedy: Watched())
    monkeypatch.setattr(jax.config, "update", lambda name, value: calls.append((name, value)))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: calls.append((args, options)))
    distributed._join("host:1234", 4, 3, None, str)
    options = {"num_processes": 4, "process_id": 3, "local_device_ids": None, "initialization_timeout": 600}
    assert calls == [
        ("jax_enable_preemption_service", False),
        (("relay to host:1234",), options),
        "host:1234",
    ]
    calls.clear()
    distributed._join("host:1234", 4, 0, None, str)
    assert calls[1] == (("host:1234",), options | {"process_id": 0})


# A process of two that meets the other again and again. The collectives' library prints lines in parts, so "met" begins
# a line of its own.
MEETING = """\
from jaxtrain.train import distributed
distributed.start(lambda: "The same command goes on from step 7.")
distributed.anywhere(False)
print("\\nmet", flush=True)
while True:
    distributed.anywhere(False)
"""


def test_a_process_says_which_other_is_gone_and_ends():
    """Real processes, worth two starts of JAX for what its own client does; test_two_processes.py loses the first."""
    address = f"localhost:{runs.free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MEETING],
            env=os.environ | {name: value for name, value in zip(TOLD, (address, "2", str(index)), strict=True)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        for process in processes:
            assert any(line.endswith("met\n") for line in process.stdout)  # behind pieces of what Gloo prints
        processes[1].terminate()
        assert processes[1].wait(timeout=60) == -signal.SIGTERM
        assert processes[0].wait(timeout=60) == 1  # JAX would take 100 s
    finally:
        for process in processes:
            process.kill()
        said = [process.communicate()[1] for process in processes]
    assert said[0] == "jaxtrain: stopped: process 1 is gone. The same command goes on from step 7.\n"
