"""Which kernels a compiled program calls, and how it is compiled in little time."""

import re
from collections import Counter

import jax

# Options for GPUs. What surrounds a kernel need not be fast; kernels go through ptxas as ever.
QUICKLY = {"xla_gpu_autotune_level": 0, "xla_llvm_disable_expensive_passes": True}
TARGETS = ("tpu_custom_call", "mosaic_gpu_v2")


def kernels_in(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Return how often each Pallas kernel stands in the compiled text, by its name; a loop's body counts once."""
    names = []
    for line in compiled.as_text().splitlines():
        target = re.search(r'custom_call_target="(\w+)"', line)
        if target and target[1] in TARGETS:
            path = re.search(r'op_name="([^"]*)"', line)[1].split("/")
            names.append(re.sub(r".*\(|\)+$", "", path[-2]))
    return dict(Counter(names))
