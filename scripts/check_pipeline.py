"""Every schedule through the executor: gradients against the unpipelined decoder, slots against the simulator.

    uv run python scripts/check_pipeline.py [--stages 2 4 8] [--multiples 1 2 4] [--fsdp 2 --tensor 2] [--only ZBH1]

Simulated CPU devices, the tiny decoder with attention, tied embeddings, dropout and layers that do not divide evenly,
slots that hold nothing poisoned. One row a schedule and number of stages, with the largest error of loss or gradient,
in units of the norm of its leaf, over m = p, 2p and 4p microbatches. Exits with 1 where one exceeds SAME_GRADIENT of
tests/tolerances.py. A quarter of an hour and more.
"""

import argparse
import os
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
LAYERS, ROWS = 40, 32


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--multiples", type=int, nargs="+", default=[1, 2, 4], help="microbatches a stage")
    parser.add_argument("--fsdp", type=int, default=1, help="devices of a stage along fsdp")
    parser.add_argument("--tensor", type=int, default=1, help="devices of a stage along tensor")
    parser.add_argument("--only", default="", help="schedules whose name holds this")
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    devices = max(arguments.stages) * arguments.fsdp * arguments.tensor
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = flags
    sys.path[:0] = [str(TESTS), str(TESTS / "pipeline")]
    from pipeline_cases import CASES

    print(f"{'schedule':<80}{'stages':>6}  {'microbatches':<14}{'largest error':>18}")
    cases = [case for case in CASES if arguments.only in str(case)]
    axes = {"fsdp": arguments.fsdp, "tensor": arguments.tensor}
    return int(sum(check(case, stages, arguments.multiples, axes) for case in cases for stages in arguments.stages) > 0)


def check(case, stages: int, multiples: list[int], axes: dict[str, int]) -> bool:
    """Print the row of a schedule; return whether it failed."""
    from pipelined_decoder import pipelined, unpipelined
    from tiny import variant
    from tolerances import SAME_GRADIENT, largest_error

    from jaxtrain.mesh import MeshConfig
    from jaxtrain.nn.heads import TiedHead

    model = variant(repeats=LAYERS, dropout=0.1, head=TiedHead())
    counts = [multiple * stages for multiple in multiples if multiple >= case.fewest and multiple * stages <= ROWS]
    mesh = MeshConfig(stage=stages, **axes)
    runs = (pipelined(model, ROWS, case.schedule, count, mesh) for count in counts)
    worst = max(largest_error(run, unpipelined(model, ROWS)) for run in runs)
    print(f"{case!s:<80}{stages:>6}  {' '.join(map(str, counts)):<14}{worst:>18.1e}", flush=True)
    return not worst <= SAME_GRADIENT.relative


if __name__ == "__main__":
    sys.exit(main())
