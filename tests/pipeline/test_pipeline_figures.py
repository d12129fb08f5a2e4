"""The papers' own figures, exactly, from the simulator. p stages, m microbatches, v chunks a stage."""

import pytest
from pipeline_cases import table_of
from pytest import approx

from jaxtrain.pipeline.schedules.bitpipe import BitPipe
from jaxtrain.pipeline.schedules.breadth_first import BreadthFirst
from jaxtrain.pipeline.schedules.chimera import Chimera
from jaxtrain.pipeline.schedules.dualpipe_v import DualPipeV
from jaxtrain.pipeline.schedules.gpipe import GPipe
from jaxtrain.pipeline.schedules.hanayo import Hanayo
from jaxtrain.pipeline.schedules.interleaved import Interleaved
from jaxtrain.pipeline.schedules.interleaved_zero_bubble import InterleavedZeroBubble
from jaxtrain.pipeline.schedules.layered_accumulation import LayeredAccumulation
from jaxtrain.pipeline.schedules.one_f_one_b import OneFOneB
from jaxtrain.pipeline.schedules.paired_deferred_w import PairedDeferredW
from jaxtrain.pipeline.schedules.paired_interleaved import PairedInterleaved
from jaxtrain.pipeline.schedules.paired_one_f_one_b import PairedOneFOneB
from jaxtrain.pipeline.schedules.two_bp import TwoBP
from jaxtrain.pipeline.schedules.v_half import VHalf
from jaxtrain.pipeline.schedules.v_min import VMin
from jaxtrain.pipeline.schedules.v_zb import VZB
from jaxtrain.pipeline.schedules.zb_h1 import ZBH1
from jaxtrain.pipeline.schedules.zb_h2 import ZBH2
from jaxtrain.pipeline.simulator import Costs, peak_activations, simulate, simulate_ticks
from jaxtrain.pipeline.table import Unit

RATIOS = [(1.0, 1.0, 1.0), (1.0, 2.0, 1.0), (1.0, 1.4, 0.6)]  # F, B, W of a whole stage


def _stage_costs(table, forward=1.0, backward=1.0, weight=1.0):
    return Costs(forward=forward, backward=backward, weight=weight).spread(table)


@pytest.mark.parametrize(
    ("schedule", "units", "bubble", "peaks"),
    [
        (OneFOneB(), 33, 3 / 11, (4, 3, 2, 1)),
        (GPipe(), 33, 3 / 11, (8, 8, 8, 8)),
        (Interleaved(chunks_per_stage=2), 57, 3 / 19, (11, 9, 7, 5)),
        (BreadthFirst(chunks_per_stage=2), 57, 3 / 19, (16, 16, 16, 16)),
        (ZBH1(), 27, 1 / 9, (4, 4, 4, 4)),
        (ZBH2(), 27, 1 / 9, (7, 7, 7, 7)),
        (VZB(), 51, 3 / 51, (8, 8, 8, 8)),
        (VHalf(), 53, 5 / 53, (6, 6, 6, 6)),
        (VMin(), 59, 11 / 59, (4, 4, 4, 4)),
    ],
    ids=repr,
)
def test_four_stages_and_eight_microbatches_at_unit_costs(schedule, units, bubble, peaks):
    simulation = simulate(table_of(schedule, 4, 8))
    assert simulation.makespan == units
    assert simulation.idle_share == approx(bubble, rel=1e-12)
    assert simulation.peaks == peaks


@pytest.mark.parametrize(("chunks", "time"), [(1, 27), (2, 25.5), (4, 24.75)])
def test_interleaved_zero_bubble_takes_24_75_units_with_four_chunks_and_the_memory_of_1f1b(chunks, time):
    table = table_of(InterleavedZeroBubble(chunks_per_stage=chunks), 4, 8)
    for simulation in (simulate(table, _stage_costs(table)), simulate_ticks(table, _stage_costs(table))):
        assert simulation.makespan == approx(time)
    assert peak_activations(table) == (4 * chunks,) * 4


@pytest.mark.parametrize(("stages", "microbatches", "chunks"), [(2, 6, 3), (4, 16, 2), (8, 16, 2), (8, 32, 4)])
def test_interleaved_zero_bubble_keeps_its_formula(stages, microbatches, chunks):
    simulation = simulate(table_of(InterleavedZeroBubble(chunks_per_stage=chunks), stages, microbatches))
    assert simulation.idle_share == approx((stages - 1) / (3 * chunks * microbatches + stages - 1))
    assert simulation.peaks == (chunks * stages,) * stages


def test_one_chunk_of_interleaved_zero_bubble_is_zb_h1():
    for size in ((4, 8), (3, 2), (8, 3)):
        assert table_of(InterleavedZeroBubble(chunks_per_stage=1), *size) == table_of(ZBH1(), *size)


@pytest.mark.parametrize(("stages", "microbatches", "chunks"), [(4, 9, 2), (4, 10, 3), (8, 13, 2), (3, 11, 4)])
def test_a_number_of_microbatches_that_is_no_multiple_of_the_stages_costs_memory_and_no_time(
    stages, microbatches, chunks
):
    group = -(-microbatches // (microbatches // stages))  # the largest
    for schedule, parts, warmup in ((Interleaved, 1, 2 * (stages - 1) + 1), (InterleavedZeroBubble, 3, stages)):
        simulation = simulate(table_of(schedule(chunks_per_stage=chunks), stages, microbatches))
        assert simulation.idle_share == approx((stages - 1) / (parts * chunks * microbatches + stages - 1))
        assert simulation.peaks[0] == min((chunks - 1) * group + warmup, chunks * microbatches)


@pytest.mark.parametrize(("stages", "microbatches", "chunks"), [(4, 3, 2), (4, 1, 3), (8, 5, 4), (4, 4, 2)])
def test_breadth_first_with_fewer_microbatches_than_stages_waits_for_each_return(stages, microbatches, chunks):
    simulation = simulate(table_of(BreadthFirst(chunks_per_stage=chunks), stages, microbatches))
    assert simulation.makespan == 3 * ((chunks - 1) * stages + microbatches + stages - 1)


@pytest.mark.parametrize("schedule", [ZBH2(), VZB()], ids=repr)
@pytest.mark.parametrize(("stages", "microbatches"), [(4, 8), (8, 16), (8, 32)])
def test_no_stage_of_a_zero_bubble_schedule_waits_inside_its_own_span(schedule, stages, microbatches):
    simulation = simulate(table_of(schedule, stages, microbatches))
    assert simulation.idle_inside == (0,) * stages


@pytest.mark.parametrize(("schedule", "peak"), [(OneFOneB(), 8), (VZB(), 8), (VHalf(), 5), (VMin(), 4)], ids=repr)
def test_v_shaped_schedules_keep_what_their_paper_says_on_eight_stages(schedule, peak):
    table = table_of(schedule, 8, 16)
    assert max(peak_activations(table)) / table.placement.chunks_per_stage == peak


@pytest.mark.parametrize("stages", [2, 3, 5, 6, 12])
def test_v_shaped_schedules_keep_their_formula_on_other_numbers_of_stages(stages):
    peaks = [max(peak_activations(table_of(schedule, stages, 2 * stages))) / 2 for schedule in (VZB(), VHalf(), VMin())]
    assert peaks == [stages, (stages + 2) // 2, (stages + 4) // 3]


@pytest.mark.parametrize("schedule", [GPipe(), OneFOneB()], ids=repr)
@pytest.mark.parametrize(("microbatches", "whole", "deferred"), [(4, 21, 18), (8, 33, 30)])
def test_2bp_saves_three_units_on_four_stages(schedule, microbatches, whole, deferred):
    assert simulate(table_of(schedule, 4, microbatches)).makespan == whole
    assert simulate(table_of(TwoBP(schedule=schedule), 4, microbatches)).makespan == deferred


def test_2bp_of_one_microbatch_leaves_two_thirds_idle_instead_of_three_quarters():
    whole, deferred = simulate(table_of(GPipe(), 4, 1)), simulate(table_of(TwoBP(schedule=GPipe()), 4, 1))
    assert (whole.makespan, whole.idle_share) == (12, approx(3 / 4))
    assert (deferred.makespan, deferred.idle_share) == (9, approx(2 / 3))


@pytest.mark.parametrize(
    ("schedule", "makespan", "bubble"),
    [
        (OneFOneB(), 21, 3 / 7),
        (Interleaved(chunks_per_stage=2), 16.5, 3 / 11),
        (Chimera(), 16, 1 / 4),
        (BitPipe(), 14, 1 / 7),
        (Hanayo(waves=1), 18, 1 / 3),
        (Hanayo(waves=2), 15.25, 13 / 61),
    ],
    ids=repr,
)
def test_four_stages_and_four_microbatches_with_a_backward_of_two_forwards(schedule, makespan, bubble):
    table = table_of(schedule, 4, 4)
    simulation = simulate(table, _stage_costs(table))
    assert simulation.makespan == makespan
    assert simulation.idle_share == approx(bubble, rel=1e-12)


@pytest.mark.parametrize("stages", [2, 4, 6])
def test_bidirectional_schedules_keep_their_formula_for_as_many_microbatches_as_stages(stages):
    chimera, bitpipe = table_of(Chimera(), stages, stages), table_of(BitPipe(), stages, stages)
    lost = stages - 2
    assert simulate(chimera).idle_share == approx(lost / (3 * stages / 2 + lost))
    assert simulate(bitpipe).idle_share == approx(lost / (3 * stages + lost))


@pytest.mark.parametrize("waves", [1, 2, 3])
def test_a_forward_through_hanayos_waves_takes_2w_times_p_minus_1_transfers(waves):
    table = table_of(Hanayo(waves=waves), 4, 4)
    hops = sum(a != b for home in table.placement.homes for a, b in zip(home, home[1:], strict=False))
    assert hops == 2 * waves * 3
    assert sum(simulate(table).transfers.values()) == 2 * hops * 4
    assert table.placement.replicas == 1


def test_bidirectional_schedules_hold_two_copies_of_the_weights():
    for schedule, chunks in ((Chimera(), 1), (BitPipe(), 2)):
        held = table_of(schedule, 4, 4).placement.held
        assert [len(pairs) for pairs in held] == [2 * chunks] * 4


def test_layered_accumulation_of_sixteen_layers_takes_35_forward_ticks_where_whole_stages_take_44():
    layered = table_of(LayeredAccumulation(chunks_per_stage=4), 4, 8)
    assert _last_forward(layered, Costs()) == 35
    assert _last_forward(table_of(GPipe(), 4, 8), Costs(forward=4.0)) == 44
    bubbles = [simulate(layered).makespan - 32 * 3, simulate(table_of(GPipe(), 4, 8)).makespan * 4 - 32 * 3]
    assert bubbles[1] == 4 * bubbles[0]


def _last_forward(table, costs):
    lines = simulate(table, costs).timelines
    return max(span.end for line in lines for span in line if span.action.unit == Unit.FORWARD)


@pytest.mark.parametrize(("forward", "backward", "weight"), RATIOS)
@pytest.mark.parametrize(
    ("stages", "microbatches", "chunks"), [(4, 8, 2), (4, 16, 3), (8, 16, 1), (8, 32, 2), (2, 4, 4)]
)
def test_paired_interleaved_loses_p_minus_1_of_vm_plus_p_minus_1_in_one_loop_at_any_ratio(
    stages, microbatches, chunks, forward, backward, weight
):
    table = table_of(PairedInterleaved(chunks_per_stage=chunks), stages, microbatches)
    simulation = simulate_ticks(table, _stage_costs(table, forward, backward, weight))
    assert simulation.idle_share == approx((stages - 1) / (chunks * microbatches + stages - 1))
    assert simulation.peaks[0] == (chunks + 1) * stages - 1


@pytest.mark.parametrize(("forward", "backward", "weight"), RATIOS)
@pytest.mark.parametrize(
    ("stages", "microbatches", "chunks"), [(4, 8, 2), (4, 16, 3), (8, 16, 1), (8, 32, 2), (8, 32, 4)]
)
def test_paired_with_deferred_w_loses_p_minus_1_times_f_plus_b_minus_w_over_v_in_one_loop(
    stages, microbatches, chunks, forward, backward, weight
):
    table = table_of(PairedDeferredW(chunks_per_stage=chunks), stages, microbatches)
    simulation = simulate_ticks(table, _stage_costs(table, forward, backward, weight), head=False)
    lost = simulation.makespan - microbatches * (forward + backward + weight)
    assert lost == approx((stages - 1) * (forward + backward - weight) / chunks)
    assert simulation.peaks[0] == min((chunks + 2) * stages - 2, chunks * microbatches)


@pytest.mark.parametrize(("chunks", "percent"), [(2, 3.5), (4, 1.8)])
def test_paired_with_deferred_w_idles_a_few_percent_on_eight_stages(chunks, percent):
    simulation = simulate_ticks(table_of(PairedDeferredW(chunks_per_stage=chunks), 8, 32))
    assert round(100 * simulation.idle_share, 1) == percent


def test_plain_1f1b_idles_35_percent_in_one_loop_where_gpipe_and_paired_1f1b_idle_18():
    shares = [simulate_ticks(table_of(s, 8, 32)).idle_share for s in (OneFOneB(), GPipe(), PairedOneFOneB())]
    assert [round(share, 2) for share in shares] == [0.35, 0.18, 0.18]


@pytest.mark.parametrize("stages", [2, 4, 8])
def test_dualpipe_v_keeps_one_chunk_more_than_there_are_chunks(stages):
    assert max(peak_activations(table_of(DualPipeV(), stages, 4 * stages))) == 2 * stages + 1


@pytest.mark.parametrize(("stages", "microbatches"), [(4, 8), (8, 32)])
def test_zb_h1_and_zb_h2_tie_within_one_synchronous_step(stages, microbatches):
    spans = [simulate(table_of(schedule, stages, microbatches)).makespan for schedule in (ZBH1(), ZBH2())]
    assert spans == [3 * microbatches + stages - 1] * 2


@pytest.mark.parametrize(("stages", "microbatches"), [(4, 8), (8, 32)])
def test_both_bubble_conventions_are_reported_for_gpipe(stages, microbatches):
    simulation = simulate(table_of(GPipe(), stages, microbatches))
    assert simulation.idle_share == approx((stages - 1) / (microbatches + stages - 1))
    assert simulation.overhead == approx((stages - 1) / microbatches)
