"""Several processes: how they start together, and how they agree.

On TPU pods and under SLURM, JAX detects the other processes. Elsewhere three environment variables name them.
"""

import functools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import cast

import jax
import numpy as np
from jax._src import clusters  # JAX has no public names for its cluster detection and its key-value store
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from jaxtrain.train import peers

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SLURM_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
TPU_HOSTS = ("TPU_PROCESS_ADDRESSES_PATH", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
ARRIVAL_SECONDS = 300  # for all processes to connect
log = logging.getLogger(__name__)


def start(remedy: Callable[[], str] = str) -> None:
    """Join the other processes of this run, if there are any. Call before the first use of a device.

    From then on they are watched: if one is gone, this one prints that and `remedy`, and ends.

    Raises:
        ValueError: only some of the three variables are set, one is not a number, or not all processes connected.
    """
    given = [name for name in VARIABLES if os.environ.get(name)]
    if jax.distributed.is_initialized():
        return
    if given and len(given) < len(VARIABLES):
        missing = [name for name in VARIABLES if name not in given]
        raise ValueError(f"{', '.join(given)} set but not {', '.join(missing)}: set all three, or none for one process")
    if given:
        _join(*_from_variables(), None, remedy)
    elif all(os.environ.get(name) for name in SLURM_STEP):
        if _number("SLURM_NTASKS", os.environ["SLURM_NTASKS"]) > 1:
            _join(*_detected(), remedy)
    elif _on_tpu_machine():
        _start_tpu(remedy)


def _from_variables() -> tuple[str, int, int]:
    """Return the first process's address, the number of processes, and this one's index, from the variables."""
    address = os.environ[VARIABLES[0]]
    count, index = (_number(name, os.environ[name]) for name in VARIABLES[1:])
    if not 0 <= index < count:
        raise ValueError(f"JAX_PROCESS_ID={index}: must be at least 0 and below JAX_NUM_PROCESSES={count}")
    return address, count, index


def _detected() -> tuple[str, int, int, Sequence[int] | None]:
    """Return the first process's address, the number of processes, and this one's index and devices, from JAX.

    Raises:
        ValueError: JAX finds no cluster.
    """
    address, count, index, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, ARRIVAL_SECONDS
    )
    if address is None or count is None or index is None:
        raise ValueError("JAX finds no cluster that this process is a part of")
    return address, count, index, devices


def _join(address: str, count: int, index: int, devices: Sequence[int] | None, remedy: Callable[[], str]) -> None:
    jax.config.update("jax_enable_preemption_service", False)  # it handles SIGTERM, which jaxtrain handles itself
    watched = peers.watch(index, count, remedy)
    initialize = functools.partial(
        jax.distributed.initialize,
        watched.relay(address) if index else address,
        num_processes=count,
        process_id=index,
        local_device_ids=devices,
        initialization_timeout=2 * ARRIVAL_SECONDS,  # after which it aborts in native code
    )
    try:
        _in_thread(initialize, ARRIVAL_SECONDS)
    except TimeoutError:
        raise ValueError(
            f"not all of {count} processes came to {address} in {ARRIVAL_SECONDS} s, this is process {index}: "
            f"start all of them, the first at that address"
        ) from None
    if not watched.meet(address, cast(peers.Store, global_state.client)):  # set by initialize
        log.warning("not all processes can be watched: should one be lost, the others notice after 100 s")


def _in_thread(function: Callable[[], None], seconds: float) -> None:
    """Call, in another thread, a function that waits in native code, so that Ctrl-C still interrupts this thread."""
    outcome: Future[None] = Future()

    def call():
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    outcome.result(seconds)


def _on_tpu_machine() -> bool:
    # JAX sets the variable when it is imported where there are TPU chips and libtpu.
    return os.environ.get("TPU_ML_PLATFORM") == "JAX" and "tpu" in os.environ.get("JAX_PLATFORMS", "tpu")


def _start_tpu(remedy: Callable[[], str]) -> None:
    """Join the TPU pod. Kubernetes lists its hosts in a variable; elsewhere JAX asks the machine's metadata server."""
    named = next((name for name in TPU_HOSTS if os.environ.get(name)), None)
    if named:
        if named == TPU_HOSTS[0] or "," in os.environ[named]:
            _join(*_detected(), remedy)
    elif not os.environ.get("TPU_SKIP_MDS_QUERY"):
        try:
            detected = _detected()
        except (OSError, ValueError) as error:
            log.warning("this TPU machine knows of no pod (%s): training on it alone", error)
            return
        _join(*detected, remedy)


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text!r}: must be a whole number") from None


def anywhere(flag: bool) -> bool:
    """Tell whether `flag` is true on any process. All of them must call this at the same point."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def of_first(number: int) -> int:
    """Return the first process's `number`. All of them must call this at the same point."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.array(number)))


def same(number: int) -> bool:
    """Tell whether all processes have the same `number`, below 2^31. All of them must call this at the same point."""
    return not anywhere(of_first(number) != number)


def together[T](action: Callable[[], T]) -> T:
    """Return the result of `action`, which waits for no other process. If it fails on one process, all raise.

    All must call this at the same point.

    Raises:
        Exception: the error of `action` on this process; a ValueError where it failed on others alone.
    """
    failure, result = None, None
    try:
        result = action()
    except Exception as error:
        failure = error
    if anywhere(failure is not None):
        raise failure or ValueError("another process of this run cannot go on, and says why")
    return cast(T, result)


def by_first(action: Callable[[], None]) -> None:
    """Run `action` on the first process, `together`."""
    together(lambda: action() if jax.process_index() == 0 else None)
