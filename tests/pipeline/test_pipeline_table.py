"""The text form of a table, and what validation refuses."""

import pytest

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


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("chunks: 0 1\n", "", "starts with the stage of every chunk"),
        ("F1.1", "G1.1", "stage 1: `G1.1` is no action; expected F, B, W or BW, then microbatch.chunk"),
        ("stage 1:", "stage 2:", r"lines \['stage 1', 'stage 2'\]: missing or unknown"),
        ("stage 1: F0.1", "F0.1", "line 4 is `F0.1.*expected `chunks:`, `routes:` or `stage N:`"),
        ("chunks: 0 1", "chunks: 0 x", "must be whole numbers"),
        ("chunks: 0 1", "chunks: 0 1 /", "must be whole numbers"),
        ("chunks: 0 1", "chunks: 0 2", r"missing \[1\]"),
        ("chunks: 0 1", "chunks: 0 99999999999", "stages must be numbered 0 to 1"),
        (
            "chunks: 0 1",
            "chunks: 0 1\nchunks: 1 0",
            "line 3: `chunks:` stands on line 2 already; remove one of the two",
        ),
        ("stage 1:", "stage 0:", "line 4: `stage 0:` stands on line 3 already"),
        ("F1.1", "F99999999999.1", "microbatch 99999999999 without microbatch 2: .* without gaps; nearest 2$"),
        ("F1.1", f"F{'9' * 5000}.1", "stage 1: `F9+.1` is no action"),
        ("F1.1", "F١.1", "stage 1: `F١.1` is no action"),
        ("chunks: 0 1", f"chunks: 0 {'9' * 5000}", "must be whole numbers of at most 18 digits"),
        ("F1.1", "F1.2", "stage 1: F1.2 is out of range: 2 microbatches, 2 chunks"),
        ("F1.1", "F1.0", "stage 1: F1.0 belongs on stage 0"),
        ("F1.1 BW1.1", "BW1.1", "microbatch 1, chunk 1 has 1 BW; every microbatch passes every chunk with one F"),
        ("W1.0", "", "microbatch 1, chunk 0 has 1 F, 1 B; .* one B and one W"),
        ("F0.1 BW0.1", "BW0.1 F0.1", "the schedule deadlocks: .*stage 1 at BW0.1 waits for F0.1"),
        ("F0.0 F1.0 BW0.0", "F0.0 BW0.0 F1.0", None),
        ("F0.1 BW0.1 F1.1", "F1.1 F0.1 BW0.1", None),
        ("B1.0 W1.0", "W1.0 B1.0", "stage 0 at W1.0 waits for B1.0"),
    ],
)
def test_a_wrong_table_is_refused_with_the_place_and_the_rule(old, new, message):
    assert old in TEXT
    text = TEXT.replace(old, new)
    if message is None:
        validate(Table.load(text))
        return
    with pytest.raises(ValueError, match=message):
        validate(Table.load(text))


def test_a_deadlock_between_stages_names_who_waits_for_whom():
    text = TEXT.replace("F0.0 F1.0 BW0.0", "F0.0 BW0.0 F1.0").replace("F0.1 BW0.1 F1.1", "F1.1 F0.1 BW0.1")
    with pytest.raises(ValueError, match="stage 0 at BW0.0 waits for B0.1; stage 1 at F1.1 waits for F1.0"):
        validate(Table.load(text))


def test_a_route_to_a_missing_weight_copy_is_refused():
    table = of_stages(loop(1), [[forward(0, 0), fused(0, 0)]], routes=[1])
    with pytest.raises(ValueError, match=r"routes=\(1,\): each microbatch must name one of the 1 weight copies"):
        validate(table)


def test_a_table_file_trains_as_the_schedule_that_it_was_saved_from(tmp_path):
    file = tmp_path / "table.txt"
    file.write_text(PairedInterleaved().table(4, 8).dump(), encoding="utf-8-sig")  # as some editors save
    config = load("configs/pipeline_tiny.gin", [f"gradients.schedule=@FromFile(path={str(file)!r})"]).config
    assert config.gradients.schedule == FromFile(path=str(file))
    built_in = Pipelined(microbatches=8, schedule=PairedInterleaved())
    assert config.gradients.plan(4, config.model, 128) == built_in.plan(4, config.model, 128)


@pytest.mark.parametrize(
    ("size", "message"), [((3, 2), "stages=3: .*for 2; nearest 2$"), ((2, 4), "microbatches=4: .* 2$")]
)
def test_a_table_file_is_for_its_own_size(tmp_path, size, message):
    file = tmp_path / "table.txt"
    file.write_text(TEXT)
    with pytest.raises(ValueError, match=message):
        FromFile(path=str(file)).table(*size)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\xff", "is not a text file in UTF-8"),
        (b"chunks: 0 1\nstage 0:\nstage 1:\n", "the table has no actions; write them"),
        (b"chunks: 0 / 1\nroutes: 0\nstage 0: F0.0 BW0.0\nstage 1:\n", "stage 1 has no actions: no microbatch travels"),
        (
            _one_microbatch((0, 2, 1, 3)),
            "chunks 0 and 1 are on stages 0 and 2: the loop exchanges with neighbours only",
        ),
        (_one_microbatch((0, 1, 2), (2, 1, 0)), "stages=3: two directions .* must be even; nearest 2 or 4$"),
    ],
)
def test_a_file_that_the_loop_cannot_run_is_refused_by_its_name(tmp_path, content, message):
    file = tmp_path / "wrong.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"wrong.txt:? {message}"):
        FromFile(path=str(file)).load()
