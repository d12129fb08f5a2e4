"""The conformance suite: what every schedule must hold, for each in `pipeline_cases`."""

from collections.abc import Callable

import numpy as np
import pytest
from pipeline_cases import CASES, Case, program_of, table_of
from tick_interpreter import Model, run, sequential

from jaxtrain.cli.schedule_catalog import all_schedules, parse
from jaxtrain.pipeline.lower import lower
from jaxtrain.pipeline.simulator import peak_activations, peak_deferred, simulate, simulate_ticks
from jaxtrain.pipeline.table import Table
from jaxtrain.pipeline.ticks import pack
from jaxtrain.pipeline.validation import validate

SIZES = [(stages, stages * times) for stages in (2, 4, 8) for times in (1, 2, 4)]
UNEVEN = [(2, 1), (3, 7), (4, 3), (4, 9), (8, 13)]


def _sizes(case: Case) -> list[tuple[int, int]]:
    return [(stages, microbatches) for stages, microbatches in SIZES if microbatches >= case.fewest * stages]


def _params(sizes: Callable[[Case], list[tuple[int, int]]]) -> list:
    return [pytest.param(case, *size, id=f"{case}-{size[0]}x{size[1]}") for case in CASES for size in sizes(case)]


ALL = _params(lambda case: _sizes(case) + UNEVEN * case.any_number)
RUN = _params(lambda case: _sizes(case)[::3] + UNEVEN[:4] * case.any_number)
SOME = [pytest.param(case, *_sizes(case)[-4], id=str(case)) for case in CASES]


def test_every_schedule_has_a_case():
    assert {type(case.schedule) for case in CASES} == set(all_schedules().values())


@pytest.mark.parametrize(("case", "stages", "microbatches"), ALL)
def test_its_table_can_run_and_its_peaks_are_the_slots_of_its_program(case, stages, microbatches):
    table = validate(table_of(case.schedule, stages, microbatches))
    assert (len(table.stages), table.microbatches) == (stages, microbatches)
    program = lower(table, ticks=pack(table))
    assert program.residuals_by_stage == peak_activations(table)
    assert program.slots.residuals == max(peak_activations(table))
    assert program.slots.deferred == max(peak_deferred(table))


@pytest.mark.parametrize("paired", [True, False], ids=["paired", "single"])
@pytest.mark.parametrize(("case", "stages", "microbatches"), RUN)
def test_its_program_reads_the_right_value_everywhere(case, stages, microbatches, paired):
    table = table_of(case.schedule, stages, microbatches)
    model = Model.random(table.placement.chunks, microbatches)
    found = run(lower(table, ticks=pack(table, paired=paired)), model)
    for value, desired in zip(found, sequential(model), strict=True):
        np.testing.assert_allclose(value, desired, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("case", "stages", "microbatches"), SOME)
def test_its_text_form_loads_to_the_same_table(case, stages, microbatches):
    table = table_of(case.schedule, stages, microbatches)
    assert Table.load(table.dump()) == table


@pytest.mark.parametrize("case", CASES, ids=str)
def test_its_memory_is_constant_in_the_number_of_microbatches_unless_it_says_otherwise(case):
    few, many = (program_of(case.schedule, 4, microbatches) for microbatches in (4 * case.constant_from, 32))
    if case.grows:
        assert many.slots.residuals == 4 * few.slots.residuals
    else:
        assert (many.slots, many.payloads) == (few.slots, few.payloads)


@pytest.mark.parametrize(("case", "stages", "microbatches"), SOME)
def test_one_compiled_loop_is_never_faster_than_stages_on_their_own(case, stages, microbatches):
    table = table_of(case.schedule, stages, microbatches)
    assert simulate_ticks(table).makespan >= simulate(table).makespan - 1e-9


@pytest.mark.parametrize("case", CASES, ids=str)
def test_its_text_names_it(case):
    assert parse(repr(case.schedule)) == case.schedule
