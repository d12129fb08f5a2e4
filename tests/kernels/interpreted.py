"""Kernels run on the CPU, by the interpreter of their device."""

from contextlib import AbstractContextManager, nullcontext

from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu


def interpreted(implementation: str) -> AbstractContextManager:
    """Return the context in which an implementation runs here: memory starts as NaN, and races are errors."""
    match implementation:
        case "tpu":
            return pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True))
        case "gpu":
            return plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True))
    return nullcontext()
