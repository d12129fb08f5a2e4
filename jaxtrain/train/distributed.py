"""Several processes: starting up together, and agreeing.

Found out on TPU pods and under SLURM, or told by three environment variables.
"""

import logging
import os
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SLURM_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
TPU_HOSTS = ("TPU_PROCESS_ADDRESSES_PATH", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
log = logging.getLogger(__name__)


def start() -> None:
    """Join the other processes of this run, if there are any. Call before the first use of a device.

    Raises:
        ValueError: only some of the three variables are set, or one is not a number.
    """
    given = [name for name in VARIABLES if os.environ.get(name)]
    if jax.distributed.is_initialized():
        return
    if given and len(given) < len(VARIABLES):
        missing = [name for name in VARIABLES if name not in given]
        raise ValueError(f"{', '.join(given)} set but not {', '.join(missing)}: set all three, or none for one process")
    if given:
        address, count, index = (os.environ[name] for name in VARIABLES)
        _start_told(address, _number(VARIABLES[1], count), _number(VARIABLES[2], index))
    elif all(os.environ.get(name) for name in SLURM_STEP):
        if _number("SLURM_NTASKS", os.environ["SLURM_NTASKS"]) > 1:
            jax.distributed.initialize()
    elif _on_tpu_machine():
        _start_tpu()


def _start_told(address: str, count: int, index: int) -> None:
    if not 0 <= index < count:
        raise ValueError(f"JAX_PROCESS_ID={index}: must be at least 0 and below JAX_NUM_PROCESSES={count}")
    jax.distributed.initialize(address, num_processes=count, process_id=index)


def _on_tpu_machine() -> bool:
    # JAX sets the variable when it is imported where there are TPU chips and libtpu.
    return os.environ.get("TPU_ML_PLATFORM") == "JAX" and "tpu" in os.environ.get("JAX_PLATFORMS", "tpu")


def _start_tpu() -> None:
    """Join the pod: Kubernetes lists its hosts in a variable; elsewhere JAX asks the machine's metadata server."""
    named = next((name for name in TPU_HOSTS if os.environ.get(name)), None)
    if named:
        if named == TPU_HOSTS[0] or "," in os.environ[named]:
            jax.distributed.initialize()
    elif not os.environ.get("TPU_SKIP_MDS_QUERY"):
        try:
            jax.distributed.initialize()
        except (OSError, ValueError) as error:
            log.warning("this TPU machine knows of no pod (%s): training on it alone", error)


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text!r}: must be a whole number") from None


def anywhere(flag: bool) -> bool:
    """Tell whether `flag` holds on any process. All of them must call this at the same point."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def of_first(number: int) -> int:
    """Return the number that the first process gives. All of them must call this at the same point."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.array(number)))


def by_first(action: Callable[[], None]) -> None:
    """Have the first process do something; what it raises there ends all of them. All must call this together.

    Raises:
        Exception: what `action` did on the first process; a ValueError on the others.
    """
    failure = None
    if jax.process_index() == 0:
        try:
            action()
        except Exception as error:
            failure = error
    if anywhere(failure is not None):
        raise failure or ValueError("the first process of this run cannot go on, and says why")
