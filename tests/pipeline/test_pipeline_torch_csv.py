"""Tables as PyTorch writes them (scripts/peers/make_schedule_goldens.py): read, run, and compared with ours."""

from pathlib import Path

import numpy as np
import pytest
from messages import refused
from pipeline_cases import table_of
from tick_interpreter import Model, run, sequential

from jaxtrain.cli.config_file import load
from jaxtrain.pipeline.lower import lower
from jaxtrain.pipeline.schedules.breadth_first import BreadthFirst
from jaxtrain.pipeline.schedules.dualpipe_v import DualPipeV
from jaxtrain.pipeline.schedules.from_file import FromFile
from jaxtrain.pipeline.schedules.interleaved import Interleaved
from jaxtrain.pipeline.schedules.interleaved_zero_bubble import InterleavedZeroBubble
from jaxtrain.pipeline.table import Unit, backward, forward, fused, weight
from jaxtrain.pipeline.torch_csv import load_torch_csv
from jaxtrain.train.gradients.pipelined import Pipelined

GOLDEN = Path(__file__).parents[1] / "golden" / "torch" / "schedules"
FILES = sorted(GOLDEN.glob("*.csv"))
OURS = {
    "Interleaved1F1B": lambda chunks: Interleaved(chunks_per_stage=chunks),
    "InterleavedZeroBubble": lambda chunks: InterleavedZeroBubble(chunks_per_stage=chunks),
    "LoopedBFS": lambda chunks: BreadthFirst(chunks_per_stage=chunks),
    "DualPipeV": lambda _: DualPipeV(),
}


def _size(file: Path) -> tuple[int, int]:
    _, stages, microbatches, *_ = file.stem.split("_")
    return int(stages), int(microbatches)


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.stem.split("_")[0] in OURS], ids=lambda file: file.stem
)
def test_our_schedule_is_the_table_of_pytorch(file):
    name, _, _, chunks, *_ = file.stem.split("_")
    assert FromFile(path=str(file)).size() == _size(file)
    assert FromFile(path=str(file)).table(*_size(file)) == table_of(OURS[name](int(chunks)), *_size(file))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_program_of_a_table_of_pytorch_reads_the_right_value_everywhere(file):
    table = FromFile(path=str(file)).table(*_size(file))
    model = Model.random(table.placement.chunks, table.microbatches)
    for value, desired in zip(run(lower(table), model), sequential(model), strict=True):
        np.testing.assert_allclose(value, desired, rtol=1e-10, atol=1e-12)


def test_a_run_takes_a_table_of_pytorch_by_the_path_of_its_file():
    file = str(GOLDEN / "Interleaved1F1B_4_8_2_compute_only.csv")
    config = load("configs/pipeline_tiny.gin", [f"gradients.schedule=@FromFile(path={file!r})"]).config
    ours = Pipelined(microbatches=8, schedule=Interleaved(chunks_per_stage=2))
    assert config.gradients.plan(4, config.model, 128) == ours.plan(4, config.model, 128)


def test_the_goldens_hold_every_kind_of_cell():
    text = "".join(file.read_text() for file in FILES)
    for part in (
        "0F0,",
        ",,",
        "0I0",
        "0W0",
        "0B0",
        "OVERLAP_F_B",
        "SEND_F",
        "RECV_B",
        "UNSHARD",
        "RESHARD",
        "REDUCE_GRAD",
    ):
        assert part in text, part


def test_cells_are_actions_of_chunks():
    table = load_torch_csv('0F0,,"(0F1;1B0)OVERLAP_F_B", 1F0 ,1SEND_B0,0I0,0W0,0REDUCE_GRAD,0B1,1F1,1B1\n\n')
    assert table.stages == (
        (
            forward(0, 0),
            forward(1, 0),
            fused(0, 1),
            forward(0, 1),
            backward(0, 0),
            weight(0, 0),
            fused(1, 0),
            forward(1, 1),
            fused(1, 1),
        ),
    )
    assert table.placement.homes == ((0, 0),)
    assert {action.unit for action in table.stages[0]} == set(Unit)


TEXT = "0F0,0F1,,0B0,0B1\n,1F0,1B0,1F1,1B1\n"
WRONG = {
    "another kind": ("1F1", "1G1", ("rank 1, cell 4", "`1G1`", "F, I, W or B", "2F0")),
    "no microbatch": ("1F1", "1F", ("rank 1, cell 4", "`1F`")),
    "a move in an overlap": ("1F1", "(1F1;1SEND_F1)OVERLAP_F_B", ("rank 1, cell 4", "`(1F1;1SEND_F1)OVERLAP_F_B`")),
    "another rank's": ("1F1", "0F1", ("rank 1, cell 4", "`0F1`", "stage 0", "rank 0")),
    "a move of another rank": ("1F1", "0SEND_F1,1F1", ("rank 1, cell 4", "`0SEND_F1`", "rank 0")),
    "a rank without actions": ("\n", "\n,,\n", ("rank 1",)),
    "a stage left out": ("1F0,1B0,1F1,1B1", "2F0,2B0,2F1,2B1", ("stage 2", "stage 1")),
    "a huge stage": ("1F1", f"{10**17}F1", ("stage 100000000000000000", "stage 2")),
    "a huge microbatch": ("1F1", f"1F{10**17}", ("microbatch 100000000000000000", "microbatch 2")),
    "twice": ("1F1", "1F1,1F1", ("microbatch 1, chunk 1", "2 F")),
    "the backward before": ("0F0,0F1,,0B0", "0B0,0F0,0F1", ("deadlocks", "stage 0 at BW0.0")),
    "stages apart": ("1F0,1B0,1F1,1B1", "2F0,2B0,2F1,2B1\n1F0,1B0,1F1,1B1\n3F0,3B0,3F1,3B1", ("chunks 0 and 1",)),
}


@pytest.mark.parametrize(("old", "new", "facts"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_refused_with_the_place_and_the_rule(tmp_path, old, new, facts):
    file = tmp_path / "table.csv"
    file.write_text(TEXT)
    assert FromFile(path=str(file)).size() == (2, 2)
    file.write_text(TEXT.replace(old, new, 1))
    with refused(ValueError, file, *facts):
        FromFile(path=str(file)).size()


def test_a_cell_that_never_ends_is_refused_by_the_name_of_its_file(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text('0F0,"' + "9" * 200_000)
    with refused(ValueError, file, "CSV"):
        FromFile(path=str(file)).size()
