"""The text form of a table, and what validation refuses."""

import pytest
from messages import refused

from jaxtrain.cli.config_file import load
from jaxtrain.pipeline.placement import Placement, loop
from jaxtrain.pipeline.schedules.chimera import Chimera
from jaxtrain.pipeline.schedules.from_file import FromFile
from jaxtrain.pipeline.schedules.paired_interleaved import PairedInterleaved
from jaxtrain.pipeline.table import Table, backward, forward, fused, of_stages, weight
from jaxtrain.pipeline.validation import validate
from jaxtrain.train.gradients.pipelined import Pipelined

TEXT = """\
# two stages, two microbatches
chunks: 0 1
stage 0: F0.0 F1.0 BW0.0 B1.0 W1.0   # the second backward is split
stage 1: F0.1 BW0.1 F1.1 BW1.1
"""


def _one_microbatch(*homes: tuple[int, ...]) -> bytes:
    """The text of a table in which one microbatch passes these stages on the first weight copy."""
    placement = Placement(stages=1 + max(homes[0]), homes=homes)
    rows = [[] for _ in range(placement.stages)]
    for chunk, stage in enumerate(homes[0]):
        rows[stage] += [forward(0, chunk), fused(0, chunk)]
    return of_stages(placement, rows).dump().encode()


def test_a_table_loads_from_text_and_dumps_to_it():
    table = validate(Table.load(TEXT))
    assert table.stages[0] == (forward(0, 0), forward(1, 0), fused(0, 0), backward(1, 0), weight(1, 0))
    assert table.placement == loop(2)
    assert Table.load(table.dump()) == table


def test_the_text_of_two_weight_copies_names_the_route_of_each_microbatch():
    text = Chimera().table(2, 4).dump()
    assert text.startswith("chunks: 0 1 / 1 0\nroutes: 0 1 0 1\n")


WRONG = [
    ("chunks: 0 1\n", "", ("stage of every chunk",)),
    ("F1.1", "G1.1", ("stage 1", "`G1.1`", "F, B, W or BW")),
    ("stage 1:", "stage 2:", ("['stage 1', 'stage 2']",)),
    ("stage 1: F0.1", "F0.1", ("line 4", "`F0.1", "`stage N:`")),
    ("chunks: 0 1", "chunks: 0 x", ("chunks", "whole numbers")),
    ("chunks: 0 1", "chunks: 0 1 /", ("chunks", "whole numbers")),
    ("chunks: 0 1", "chunks: 0 2", ("missing [1]",)),
    ("chunks: 0 1", "chunks: 0 99999999999", ("0 to 1",)),
    (
        "chunks: 0 1",
        "chunks: 0 1\nchunks: 1 0",
        ("line 3", "`chunks:`", "line 2"),
    ),
    ("stage 1:", "stage 0:", ("line 4", "`stage 0:`", "line 3")),
    ("F1.1", "F99999999999.1", ("microbatch 99999999999", "microbatch 2", "nearest 2")),
    ("F1.1", f"F{'9' * 5000}.1", ("stage 1", f"`F{'9' * 5000}.1`")),
    ("F1.1", "F١.1", ("stage 1", "`F١.1`")),
    ("chunks: 0 1", f"chunks: 0 {'9' * 5000}", ("chunks", 18)),
    ("F1.1", "F1.2", ("stage 1: F1.2", "2 microbatches, 2 chunks")),
    ("F1.1", "F1.0", ("stage 1: F1.0", "stage 0")),
    ("F1.1 BW1.1", "BW1.1", ("microbatch 1, chunk 1", "1 BW")),
    ("W1.0", "", ("microbatch 1, chunk 0", "1 F, 1 B")),
    ("F0.1 BW0.1", "BW0.1 F0.1", ("deadlocks", "stage 1 at BW0.1", "F0.1")),
    ("F0.0 F1.0 BW0.0", "F0.0 BW0.0 F1.0", None),
    ("F0.1 BW0.1 F1.1", "F1.1 F0.1 BW0.1", None),
    ("B1.0 W1.0", "W1.0 B1.0", ("stage 0 at W1.0", "B1.0")),
]


@pytest.mark.parametrize(("old", "new", "facts"), WRONG, ids=[ascii(f"{case[0]} to {case[1]}")[1:40] for case in WRONG])
def test_a_wrong_table_is_refused_with_the_place_and_the_rule(old, new, facts):
    assert old in TEXT
    text = TEXT.replace(old, new)
    if facts is None:
        validate(Table.load(text))
        return
    digits = {"<digits>": "9{5000}"} if "9" * 5000 in new else None
    with refused(ValueError, *facts, varies=digits):
        validate(Table.load(text))


def test_a_deadlock_between_stages_names_who_waits_for_whom():
    text = TEXT.replace("F0.0 F1.0 BW0.0", "F0.0 BW0.0 F1.0").replace("F0.1 BW0.1 F1.1", "F1.1 F0.1 BW0.1")
    with refused(ValueError, "stage 0 at BW0.0 waits for B0.1", "stage 1 at F1.1 waits for F1.0"):
        validate(Table.load(text))


def test_a_route_to_a_missing_weight_copy_is_refused():
    table = of_stages(loop(1), [[forward(0, 0), fused(0, 0)]], routes=[1])
    with refused(ValueError, "routes=(1,)", "1 weight copies"):
        validate(table)


def test_a_table_file_trains_as_the_schedule_that_it_was_saved_from(tmp_path):
    file = tmp_path / "table.txt"
    file.write_text(PairedInterleaved().table(4, 8).dump(), encoding="utf-8-sig")  # as some editors save
    config = load("configs/pipeline_tiny.gin", [f"gradients.schedule=@FromFile(path={str(file)!r})"]).config
    assert config.gradients.schedule == FromFile(path=str(file))
    built_in = Pipelined(microbatches=8, schedule=PairedInterleaved())
    assert config.gradients.plan(4, config.model, 128) == built_in.plan(4, config.model, 128)


@pytest.mark.parametrize(
    ("size", "given"), [((3, 2), "stages=3"), ((2, 4), "microbatches=4")], ids=["stages", "microbatches"]
)
def test_a_table_file_is_for_its_own_size(tmp_path, size, given):
    file = tmp_path / "table.txt"
    file.write_text(TEXT)
    with refused(ValueError, file, given, "nearest 2"):
        FromFile(path=str(file)).table(*size)


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"\x89PNG\xff", ("UTF-8",)),
        (b"chunks: 0 1\nstage 0:\nstage 1:\n", ("no actions",)),
        (b"chunks: 0 / 1\nroutes: 0\nstage 0: F0.0 BW0.0\nstage 1:\n", ("stage 1 has no actions",)),
        (
            _one_microbatch((0, 2, 1, 3)),
            ("chunks 0 and 1", "stages 0 and 2"),
        ),
        (_one_microbatch((0, 1, 2), (2, 1, 0)), ("stages=3", "nearest 2 or 4")),
    ],
    ids=["no text", "no actions", "a stage without actions", "stages apart", "odd stages"],
)
def test_a_file_that_the_loop_cannot_run_is_refused_by_its_name(tmp_path, content, facts):
    file = tmp_path / "wrong.txt"
    file.write_bytes(content)
    with refused(ValueError, file, *facts):
        FromFile(path=str(file)).size()
