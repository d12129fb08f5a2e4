"""Record the tables of PyTorch's pipeline schedules, in PyTorch's own CSV form.

    scripts/peers/setup.sh ENVIRONMENT
    ENVIRONMENT/bin/python scripts/peers/make_schedule_goldens.py tests/golden/torch/schedules

A schedule writes its table from the numbers of ranks, of stages on a rank and of microbatches alone, so nothing runs
and no process group is made.
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime, get_schedule_class

# Name, ranks, microbatches, stages on a rank, form.
CASES = [
    ("Interleaved1F1B", 4, 8, 2, "compute_only"),
    ("Interleaved1F1B", 4, 10, 3, "compute_only"),
    ("Interleaved1F1B", 4, 3, 2, "compute_only"),
    ("InterleavedZeroBubble", 4, 8, 4, "compute_only"),
    ("InterleavedZeroBubble", 4, 10, 2, "compute_only"),
    ("InterleavedZeroBubble", 4, 3, 3, "compute_only"),
    ("InterleavedZeroBubble", 2, 4, 2, "compute_comms"),
    ("LoopedBFS", 4, 8, 2, "compute_only"),
    ("LoopedBFS", 4, 3, 2, "compute_only"),
    ("ZBVZeroBubble", 4, 8, 2, "compute_only"),
    ("DualPipeV", 4, 10, 2, "compute_only"),
]


def schedule_of(name: str, ranks: int, microbatches: int, stages_per_rank: int) -> _PipelineScheduleRuntime:
    stage = SimpleNamespace(
        group_size=ranks, group_rank=0, num_stages=ranks * stages_per_rank, submod=torch.nn.Identity()
    )
    return get_schedule_class(name)([stage] * stages_per_rank, microbatches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, ranks, microbatches, stages_per_rank, form in CASES:
        file = folder / f"{name}_{ranks}_{microbatches}_{stages_per_rank}_{form}.csv"
        schedule_of(name, ranks, microbatches, stages_per_rank)._dump_csv(str(file), format=form)
        file.write_text(file.read_text().replace("\r\n", "\n"))
        print(f"{file}: {file.stat().st_size} bytes, torch {torch.__version__}")


if __name__ == "__main__":
    main()
