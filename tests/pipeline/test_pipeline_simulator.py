"""Times, costs, memory and links of a simulated step."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import refused
from pipeline_cases import table_of
from tiny import variant

from jaxtrain.nn.remat import FullRemat, NoRemat
from jaxtrain.pipeline.coloring import Lifetime, color
from jaxtrain.pipeline.list_scheduling import reorder
from jaxtrain.pipeline.lower import lower
from jaxtrain.pipeline.residuals import ChunkInput
from jaxtrain.pipeline.schedules.chimera import Chimera
from jaxtrain.pipeline.schedules.gpipe import GPipe
from jaxtrain.pipeline.schedules.interleaved import Interleaved
from jaxtrain.pipeline.schedules.one_f_one_b import OneFOneB
from jaxtrain.pipeline.schedules.paired_one_f_one_b import PairedOneFOneB
from jaxtrain.pipeline.schedules.two_bp import TwoBP
from jaxtrain.pipeline.schedules.v_zb import VZB
from jaxtrain.pipeline.schedules.zb_h1 import ZBH1
from jaxtrain.pipeline.schedules.zb_h2 import ZBH2
from jaxtrain.pipeline.schedules.zb_search import ZBSearch
from jaxtrain.pipeline.simulator import Costs, Link, check_memory, peak_activations, simulate, simulate_ticks
from jaxtrain.pipeline.table import Unit
from jaxtrain.pipeline.validation import validate
from jaxtrain.planning.stage_costs import repeat_costs
from jaxtrain.train.gradients.pipelined import Pipelined

costs = st.builds(
    Costs,
    forward=st.floats(0.5, 2),
    backward=st.floats(0.5, 2),
    weight=st.floats(0.5, 2),
    transfer=st.sampled_from([0.0, 0.2]),
)


def test_a_transfer_delays_the_next_stage_only():
    simulation = simulate(table_of(GPipe(), 2, 1), Costs(transfer=0.5))
    starts = [[span.start for span in line] for line in simulation.timelines]
    assert starts == [[0, 5.0], [1.5, 2.5]]


def test_a_slow_chunk_sets_the_pace():
    simulation = simulate(table_of(OneFOneB(), 4, 16), Costs(forward=(1.0, 1.0, 3.0, 1.0)))
    assert simulation.work == (48, 48, 80, 48)
    assert simulation.makespan >= 80


def test_costs_of_a_model_give_attention_no_weight_gradient_and_uneven_chunks_their_layers():
    """Scores and values take 4 operations a key and channel forward; of 16 queries each sees 6.75 keys on average."""
    model = variant(repeats=3)
    [block] = model.pattern
    heads = 2 * (block.mixer.heads + block.mixer.kv_heads)  # of queries, keys, values and outputs
    products = 2 * model.d_model * (heads * block.mixer.head_dim + 3 * block.mlp.hidden)
    mixing = 4 * block.mixer.heads * block.mixer.head_dim * 6.75
    found = repeat_costs(model, 16, forward_again=True)
    forward = products + mixing
    assert found.backward == pytest.approx((products + 2 * mixing) / forward + 1)
    assert found.weight == pytest.approx(products / forward)
    assert Costs(backward=2.0, weight=0.5).of_chunks([2, 1]) == Costs(
        forward=(2.0, 1.0), backward=(4.0, 2.0), weight=(1.0, 0.5)
    )


def test_stage_remat_runs_all_layers_of_a_chunk_but_the_last_once_more():
    costs = Pipelined(microbatches=4, schedule=OneFOneB(), residuals=ChunkInput()).plan(2, variant(repeats=5), 16).costs
    repeat = repeat_costs(variant(repeats=5), 16)
    assert costs.backward == pytest.approx((3 * repeat.backward + 2, 2 * repeat.backward + 1))


def test_a_pipeline_packs_its_ticks_by_the_costs_of_its_model():
    """With remat B runs a forward again, and pairs take less time than one action a tick."""
    kept, again = (
        lower(*Pipelined(schedule=ZBH2(), microbatches=8).plan(4, variant(repeats=8, remat=remat), 16)).ticks
        for remat in (NoRemat(), FullRemat())
    )
    assert (kept, again) == (27, 14)


def test_work_adds_up_and_actions_of_a_stage_never_overlap():
    for simulation in (simulate(table_of(VZB(), 4, 8)), simulate_ticks(table_of(VZB(), 4, 8))):
        assert simulation.work == (48,) * 4
        for line in simulation.timelines:
            assert all(before.end <= after.start for before, after in itertools.pairwise(line))


def test_every_link_carries_one_message_a_microbatch_each_way():
    assert simulate(table_of(OneFOneB(), 3, 6)).transfers == {
        Link(0, 1): 6,
        Link(1, 2): 6,
        Link(2, 1): 6,
        Link(1, 0): 6,
    }
    ring = simulate(table_of(Interleaved(), 4, 8)).transfers
    assert ring[Link(3, 0)] == ring[Link(0, 3)] == 8
    assert simulate(table_of(VZB(), 4, 8)).transfers[Link(0, 1)] == 2 * 8


def test_the_two_directions_of_chimera_use_every_link_alike():
    assert set(simulate(table_of(Chimera(), 4, 8)).transfers.values()) == {8}


def test_in_one_loop_a_transfer_costs_every_tick():
    table = table_of(PairedOneFOneB(), 4, 16)
    free, ticked = (run(table, Costs(transfer=0.1)).makespan for run in (simulate, simulate_ticks))
    assert ticked > free


def test_memory_is_checked_against_a_limit_in_microbatches():
    check_memory(table_of(Interleaved(), 4, 8), 5.5)
    with refused(ValueError, "memory_limit=5", "limit to 5.5"):
        check_memory(table_of(Interleaved(), 4, 8), 5)


@pytest.mark.parametrize("wrong", [{"forward": 0.0}, {"weight": (1.0, -1.0)}, {"transfer": -0.1}])
def test_costs_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        Costs(**wrong)


@settings(max_examples=12, deadline=None)
@given(
    costs=costs,
    stages=st.integers(2, 4),
    microbatches=st.integers(1, 6),
    limit=st.integers(1, 9),
    more=st.integers(0, 3),
)
def test_the_search_obeys_its_limit_and_more_memory_never_makes_it_slower(costs, stages, microbatches, limit, more):
    tables = [ZBSearch(memory_limit=most).tuned(costs).table(stages, microbatches) for most in (limit, limit + more)]
    assert max(peak_activations(tables[0])) <= limit
    assert simulate(tables[1], costs).makespan <= simulate(tables[0], costs).makespan + 1e-9


@settings(max_examples=8, deadline=None)
@given(costs=costs, stages=st.integers(2, 4), microbatches=st.integers(1, 8))
def test_the_search_is_at_least_as_fast_as_the_handwritten_schedules_of_the_same_memory(costs, stages, microbatches):
    for schedule, limit in ((OneFOneB(), stages), (ZBH1(), stages), (ZBH2(), 2 * stages - 1)):
        search = ZBSearch(memory_limit=limit).tuned(costs)
        found = simulate(search.table(stages, microbatches), costs).makespan
        assert found <= simulate(schedule.table(stages, microbatches), costs).makespan + 1e-9


@settings(max_examples=25, deadline=None)
@given(costs=costs, limit=st.integers(11, 16), patient=st.booleans())
def test_reordering_keeps_every_unit_and_the_limit(costs, limit, patient):
    table = table_of(Interleaved(), 4, 8)
    found = validate(reorder(table, costs, limit=limit, patient=patient))
    assert [sorted(row) for row in found.stages] == [sorted(row) for row in table.stages]
    assert max(peak_activations(found)) <= limit


def test_gpipe_is_reordered_to_fit_into_the_memory_of_1f1b():
    found = validate(reorder(table_of(GPipe(), 4, 8), Costs(), limit=4))
    assert max(peak_activations(found)) == 4


def test_a_limit_that_no_order_keeps_is_refused():
    with refused(ValueError, "memory_limit=1"):
        reorder(table_of(Interleaved(), 4, 8), Costs(), limit=1)


def test_the_search_takes_its_costs_from_elsewhere():
    costs = Costs(forward=1.0, backward=1.4, weight=0.6, transfer=0.1)
    tuned = ZBSearch(memory_limit=7).tuned(costs)
    assert tuned == ZBSearch(forward=1.0, backward=1.4, weight=0.6, transfer=0.1, memory_limit=7)
    assert OneFOneB().tuned(costs) == OneFOneB()
    assert TwoBP(schedule=ZBSearch()).tuned(costs) == TwoBP(schedule=ZBSearch().tuned(costs))


lifetimes = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), max_size=40)


@given(lifetimes)
def test_colouring_uses_as_many_slots_as_values_overlap_and_never_shares_one_too_early(pairs):
    values = {number: Lifetime(first, first + length) for number, (first, length) in enumerate(pairs)}
    slots, count = color(values)
    assert count == max((sum(v.first <= t <= v.last for v in values.values()) for t in range(45)), default=0)
    for a, b in itertools.combinations(values, 2):
        overlap = values[a].first <= values[b].last and values[b].first <= values[a].last
        assert not overlap or slots[a] != slots[b]


def test_ticks_of_the_paired_schedule_hold_an_f_and_a_b_on_every_stage():
    table = table_of(PairedOneFOneB(), 4, 16)
    lines = simulate_ticks(table).timelines
    middle = [[span.action.unit for span in line if 30 <= span.start < 33] for line in lines]
    assert middle == [[Unit.FORWARD, Unit.FUSED]] * 4
