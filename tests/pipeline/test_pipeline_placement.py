"""Which stage holds which chunk, and how repeats are cut into chunks."""

import pytest
from messages import refused

from jaxtrain.pipeline.placement import Placement, bidirectional, loop, v_shape, wave


def test_the_four_shapes_for_four_stages():
    assert loop(4, 2).homes == ((0, 1, 2, 3, 0, 1, 2, 3),)
    assert v_shape(4).homes == ((0, 1, 2, 3, 3, 2, 1, 0),)
    assert wave(4, 2).homes == ((0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2, 3, 3, 2, 1, 0),)
    assert bidirectional(loop(4)).homes == ((0, 1, 2, 3), (3, 2, 1, 0))


def test_a_stage_of_a_bidirectional_v_holds_two_chunks_of_each_copy():
    assert bidirectional(v_shape(4)).held[1] == ((0, 1), (0, 6), (1, 2), (1, 5))


@pytest.mark.parametrize(("repeats", "sizes"), [(8, [2, 2, 2, 2]), (10, [3, 3, 2, 2]), (4, [1, 1, 1, 1])])
def test_layers_are_cut_into_consecutive_chunks_that_differ_by_at_most_one(repeats, sizes):
    cut = loop(4).repeats(repeats)
    assert [len(chunk) for chunk in cut] == sizes
    assert [layer for chunk in cut for layer in chunk] == list(range(repeats))


def test_more_chunks_than_layers_are_refused():
    with refused(ValueError, "model.repeats=7", "nearest model.repeats=8", "4 chunks"):
        loop(4, 2).repeats(7)


@pytest.mark.parametrize(
    ("placement", "repeats", "near"),
    [
        (loop(8, 2), 7, ("mesh.stage=3",)),
        (loop(8, 2), 1, ()),
        (bidirectional(v_shape(8)), 7, ("mesh.stage=2",)),
    ],
    ids=["loop", "one repeat", "two directions"],
)
def test_too_few_layers_for_one_chunk_a_stage_name_a_number_of_stages_that_they_fill(placement, repeats, near):
    with refused(ValueError, "nearest model.repeats=16", *near):
        placement.repeats(repeats)


@pytest.mark.parametrize(("stages", "near"), [(1, "nearest 2"), (5, "nearest 4 or 6")])
def test_two_directions_need_an_even_number_of_stages(stages, near):
    with refused(ValueError, f"{stages=}", near):
        bidirectional(loop(stages))


def test_a_stage_without_a_chunk_is_refused():
    with pytest.raises(ValueError, match=r"missing \[1\], unknown \[\]"):
        Placement(stages=3, homes=((0, 2),))


@pytest.mark.parametrize("make", [lambda: loop(0), lambda: loop(4, 0), lambda: wave(4, 0)])
def test_counts_below_one_are_refused(make):
    with pytest.raises(ValueError, match="=0 must be at least 1"):
        make()
