"""Start-up of several processes: found out on TPU pods and under SLURM, or told by three environment variables."""

import os

import jax

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SLURM = ("SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
TPU_POD = "TPU_WORKER_HOSTNAMES"


def start() -> None:
    """Join the other processes of this run, if there are any. Call before the first use of a device.

    Raises:
        ValueError: only some of the three variables are set, or one is not a number.
    """
    given = [name for name in VARIABLES if os.environ.get(name)]
    if given and len(given) < len(VARIABLES):
        missing = [name for name in VARIABLES if name not in given]
        raise ValueError(f"{', '.join(given)} set but not {', '.join(missing)}: set all three, or none for one process")
    if given:
        address, count, index = (os.environ[name] for name in VARIABLES)
        _initialize(address, _number(VARIABLES[1], count), _number(VARIABLES[2], index))
    elif (
        all(os.environ.get(name) for name in SLURM)
        and int(os.environ["SLURM_NTASKS"]) > 1
        or "," in os.environ.get(TPU_POD, "")
    ):
        jax.distributed.initialize()


def _initialize(address: str, count: int, index: int) -> None:
    if not 0 <= index < count:
        raise ValueError(f"JAX_PROCESS_ID={index}: must be at least 0 and below JAX_NUM_PROCESSES={count}")
    jax.distributed.initialize(address, num_processes=count, process_id=index)


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text!r}: must be a whole number") from None
