"""Every schedule that the conformance tests run. A new schedule is one line here."""

from dataclasses import dataclass
from functools import cache

from jaxtrain.pipeline.lower import lower
from jaxtrain.pipeline.schedules.base import Schedule
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
from jaxtrain.pipeline.schedules.zb_search import ZBSearch
from jaxtrain.pipeline.table import Table
from jaxtrain.pipeline.tick_program import TickProgram


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A schedule, whether its memory grows with the microbatches or from how many a stage on not, and the fewest.

    `any_number`: it has chunks, and takes numbers of microbatches that are no multiple of the stages, too.
    """

    schedule: Schedule
    grows: bool = False
    constant_from: int = 2
    fewest: int = 1
    any_number: bool = False

    def __str__(self) -> str:
        return str(self.schedule).replace("()", "")


CASES = (
    Case(schedule=GPipe(), grows=True),
    Case(schedule=BreadthFirst(chunks_per_stage=1), grows=True),
    Case(schedule=BreadthFirst(chunks_per_stage=2), grows=True, any_number=True),
    Case(schedule=BreadthFirst(chunks_per_stage=3), grows=True),
    Case(schedule=LayeredAccumulation(chunks_per_stage=4), grows=True),
    Case(schedule=OneFOneB()),
    Case(schedule=Interleaved(chunks_per_stage=2)),
    Case(schedule=Interleaved(chunks_per_stage=3), any_number=True),
    Case(schedule=InterleavedZeroBubble(chunks_per_stage=1)),
    Case(schedule=InterleavedZeroBubble(chunks_per_stage=2), any_number=True),
    Case(schedule=InterleavedZeroBubble(chunks_per_stage=4)),
    Case(schedule=PairedOneFOneB()),
    Case(schedule=PairedInterleaved(chunks_per_stage=1)),
    Case(schedule=PairedInterleaved(chunks_per_stage=2), any_number=True),
    Case(schedule=PairedInterleaved(chunks_per_stage=3)),
    Case(schedule=PairedDeferredW(chunks_per_stage=1), constant_from=3),  # keeps up to 3p-2
    Case(schedule=PairedDeferredW(chunks_per_stage=2)),
    Case(schedule=PairedDeferredW(chunks_per_stage=3)),
    Case(schedule=ZBH1()),
    Case(schedule=ZBH2()),
    Case(schedule=ZBSearch(forward=1.0, backward=1.4, weight=0.6, transfer=0.1)),
    Case(schedule=VMin()),
    Case(schedule=VHalf()),
    Case(schedule=VZB()),
    Case(schedule=Hanayo(waves=1)),
    Case(schedule=Hanayo(waves=2)),
    Case(schedule=Chimera()),
    Case(schedule=BitPipe()),
    Case(schedule=DualPipeV(), fewest=2),
    Case(schedule=TwoBP(schedule=GPipe()), grows=True),
    Case(schedule=TwoBP(schedule=Interleaved()), grows=True),
    Case(schedule=TwoBP(schedule=DualPipeV()), grows=True, fewest=2),
    Case(schedule=TwoBP(schedule=BitPipe()), grows=True),
)


@cache
def table_of(schedule: Schedule, stages: int, microbatches: int) -> Table:
    """The schedule's table, made once for all tests."""
    return schedule.table(stages, microbatches)


@cache
def program_of(schedule: Schedule, stages: int, microbatches: int) -> TickProgram:
    """What the executor runs for it."""
    return lower(table_of(schedule, stages, microbatches))
