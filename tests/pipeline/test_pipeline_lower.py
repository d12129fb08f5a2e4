"""Lowering: the tick program of any valid table computes the model's gradients, in no more memory than it must."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import refused
from pipeline_cases import table_of
from tick_interpreter import Model, run, sequential

from jaxtrain.pipeline.lower import lower
from jaxtrain.pipeline.placement import Placement, bidirectional, loop, v_shape, wave
from jaxtrain.pipeline.schedules.dualpipe_v import DualPipeV
from jaxtrain.pipeline.schedules.gpipe import GPipe
from jaxtrain.pipeline.schedules.one_f_one_b import OneFOneB
from jaxtrain.pipeline.schedules.paired_interleaved import PairedInterleaved
from jaxtrain.pipeline.schedules.v_zb import VZB
from jaxtrain.pipeline.schedules.zb_h1 import ZBH1
from jaxtrain.pipeline.simulator import peak_activations
from jaxtrain.pipeline.table import Action, Table, backward, forward, fused, of_stages, weight
from jaxtrain.pipeline.tick_program import TickProgram
from jaxtrain.pipeline.ticks import pack
from jaxtrain.pipeline.validation import result

PLACEMENTS = [loop(1), loop(3), loop(2, 3), v_shape(3), wave(2, 2), bidirectional(loop(2)), bidirectional(v_shape(4))]


@st.composite
def tables(draw) -> Table:
    """Any table that can run: units in a random order in which their inputs exist."""
    placement = draw(st.sampled_from(PLACEMENTS))
    routes = draw(st.lists(st.integers(0, placement.replicas - 1), min_size=1, max_size=5))
    pieces = [(microbatch, chunk) for microbatch in range(len(routes)) for chunk in range(placement.chunks)]
    split = draw(st.sets(st.sampled_from(pieces)))
    pending = {forward(*piece) for piece in pieces}
    pending |= {unit(*piece) for piece in split for unit in (backward, weight)}
    pending |= {fused(*piece) for piece in pieces if piece not in split}
    rng = draw(st.randoms(use_true_random=False))
    return of_stages(placement, _random_rows(placement, routes, pending, rng), routes)


def _random_rows(placement: Placement, routes: list[int], pending: set[Action], rng) -> list[list[Action]]:
    empty = Table(placement=placement, routes=tuple(routes), stages=())
    rows: list[list[Action]] = [[] for _ in range(placement.stages)]
    done: set[Action | None] = set()
    while pending:
        action = rng.choice(sorted(action for action in pending if done.issuperset(empty.needs(action))))
        pending.remove(action)
        done.add(result(action))
        rows[empty.home(action)].append(action)
    return rows


@settings(max_examples=60, deadline=None)
@given(table=tables(), paired=st.booleans(), weight_slots=st.integers(1, 3))
def test_the_program_of_any_valid_table_computes_the_sequential_gradients(table, paired, weight_slots):
    program = lower(table, ticks=pack(table, paired=paired, weight_slots=weight_slots))
    model = Model.random(table.placement.chunks, table.microbatches)
    for value, desired in zip(run(program, model), sequential(model), strict=True):
        np.testing.assert_allclose(value, desired, rtol=1e-9, atol=1e-11)
    assert program.residuals_by_stage == peak_activations(table)


@pytest.mark.parametrize(
    ("part", "name"),
    [("forward", "input"), ("forward", "held"), ("forward", "residual"), ("backward", "gradient"), ("backward", "held")]
    + [("backward", "residual"), ("weight", "residual"), ("weight", "deferred"), ("arrivals", "input_from_previous")],
)
def test_the_interpreter_notices_a_wrong_entry(part, name):
    table = table_of(VZB(), 4, 8)
    program = lower(table)
    model = Model.random(table.placement.chunks, table.microbatches)
    wrong = _swap_two_entries(program, part, name)
    try:
        found = run(wrong, model)
    except AssertionError:
        return
    assert not np.allclose(found.weights, sequential(model).weights)


def _swap_two_entries(program: TickProgram, part: str, name: str) -> TickProgram:
    """Exchange two different entries of one stage."""
    tables = getattr(program, part)
    entries = getattr(tables, name).copy()
    where = [tuple(index) for index in np.argwhere(entries >= 0)]
    pairs = ((a, b) for a, b in itertools.combinations(where, 2) if a[1] == b[1] and entries[a] != entries[b])
    first, second = next(pairs)
    entries[first], entries[second] = entries[second], entries[first]
    return dataclasses.replace(program, **{part: tables._replace(**{name: entries})})


def test_a_loop_sends_activations_one_way_and_gradients_the_other():
    program = lower(table_of(PairedInterleaved(), 4, 8))
    assert program.payloads == (1, 1)
    assert (program.arrivals.input_from_next == -1).all()
    assert (program.arrivals.gradient_from_previous == -1).all()
    assert program.ring


def test_a_v_turns_within_the_stage_and_needs_no_ring():
    program = lower(table_of(VZB(), 4, 8))
    assert not program.ring
    assert (program.arrivals.input_from_next >= 0).any()


def test_two_results_may_go_the_same_way_in_one_tick():
    table = table_of(DualPipeV(), 4, 16)
    assert lower(table, ticks=pack(table, paired=True)).payloads == (2, 2)
    assert lower(table, ticks=pack(table, paired=False)).payloads == (1, 1)


def test_one_stage_sends_nothing():
    program = lower(table_of(OneFOneB(), 1, 4))
    assert program.payloads == (0, 0)
    assert program.slots.inputs == 0


def test_a_schedule_that_does_not_split_its_backward_has_no_w_slot():
    assert lower(table_of(GPipe(), 4, 8)).weight.microbatch.shape[2] == 0
    assert lower(table_of(ZBH1(), 4, 8)).weight.microbatch.shape[2] == 1


def test_every_unit_appears_once_in_the_program():
    table = table_of(ZBH1(), 4, 8)
    program = lower(table)
    for part in (program.forward, program.backward, program.weight):
        units = sorted(zip(part.microbatch[part.microbatch >= 0], part.chunk[part.chunk >= 0], strict=True))
        assert units == [(microbatch, chunk) for microbatch in range(8) for chunk in range(4)]
    assert sorted(program.head[program.head >= 0]) == list(range(8))


def test_chunks_on_stages_that_are_not_neighbours_are_refused():
    placement = Placement(stages=4, homes=((0, 2, 1, 3),))
    rows = [[forward(0, chunk), fused(0, chunk)] for chunk in (0, 2, 1, 3)]
    with refused(ValueError, "chunks 0 and 1", "stages 0 and 2"):
        lower(of_stages(placement, rows))


def test_units_are_packed_in_pairs_only_where_that_is_faster():
    assert lower(table_of(PairedInterleaved(), 4, 8)).ticks == 2 * 8 + 3 * 4 - 2
    assert lower(table_of(ZBH1(), 4, 8)).ticks == 27
