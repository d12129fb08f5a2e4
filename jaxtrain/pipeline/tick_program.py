"""The integer program of one compiled loop, which `lower` makes from a table and the executor runs.

The program is a set of int32 tables, with one row a tick and one column a stage; tables of W have a third axis, one
entry a W slot. The executor runs a `lax.scan` over the rows, and every stage reads its own column. `-1` means nothing:
no action, no read, no write. (A JAX index of -1 is the last slot, so guard the write or redirect it to a spare slot.)

Each stage owns four buffers; `Slots` says how many slots they need. A slot is undefined until it is written, and after
its last read.

    inputs     activations that arrived and wait for F
    residuals  what F saves for B and W (with stage remat: F's input); as many as the simulator's peak activations
    gradients  output gradients that arrived, or that the head made, and wait for B
    deferred   what B saves for a later W beside the residuals (output gradients inside the chunk)

One tick, in this order. No slot is written again in the tick in which it is read for the last time.

1. Arrivals. Four tables name the slot for what the neighbours sent in the tick before: an activation or a gradient,
   from the previous stage or from the next.
2. F where `forward.microbatch >= 0`. Read x from `inputs[forward.input]`, or embed the microbatch where that is -1
   (chunk 0). Run `chunk` with the weights at `held` (an index into `Placement.held[stage]`, the stage's stacked
   weights) and write `residuals[forward.residual]`. The output goes to `forward.target`: NEXT or PREVIOUS sends it;
   HERE writes it to `inputs[forward.slot]` (a turn of the V); END means chunk C-1: the head takes it.
3. Head, for the microbatch that just passed chunk C-1, if any: `head[tick, replica]` names it, so that all stages can
   share the work. The loss's gradient with respect to the chunk's output goes to `gradients[from_head.slot]` of that
   stage. With `late_head` it is the microbatch that passed in the tick before, and the head comes first in the tick.
   Stages then wait for one another right after their exchange, not between F and B. A schedule that runs B of chunk C-1
   in the tick of its F cannot have a late head.
4. B where `backward.microbatch >= 0`. Read `gradients[backward.gradient]` and `residuals[backward.residual]`. Where
   `backward.fused` is 1 add the weight gradient, too; where it is 0 write `deferred[backward.deferred]`. The gradient
   of the chunk's input goes to `backward.target`: NEXT or PREVIOUS sends it; HERE writes it to
   `gradients[backward.slot]`; END means chunk 0: it belongs to the embedding, `embedding_gradient[tick, replica]`
   names the microbatch.
5. W for each slot where `weight.microbatch >= 0`, in order. Read `residuals[weight.residual]` and
   `deferred[weight.deferred]`, add the gradient of the weights at `held`.
6. Two exchanges, by every stage in every tick: one to the next stage and one to the previous, round the ring if
   `ring`, else the ends may send to nobody. `payloads.next` and `.previous` are the most arrays a stage sends that way
   in one tick: 1 if F's and B's outputs never go the same way at once (send the one that does), 2 if both do (stack
   them, activation first, so that it stays one exchange), 0 if nothing ever goes that way. Of a single payload the
   receiver's arrival tables say what it is: they name a slot for it. With two stages both neighbours are the same
   stage: F's outputs go to the next, B's to the previous.

With two weight copies (`replica` 0 and 1) a stage holds chunks of both; both copies' gradients belong to the same
weights and are summed after the loop. `chunk` is the index in the model whatever the copy, for dropout keys.

Within a stage the order of actions is the table's. Slots of residuals and deferred values are coloured by that order,
so residual slots equal the simulator's peak on every stage. The other buffers are coloured by tick.

`Forward` to `Arrivals` are generic in their entries: NumPy tables in the program, JAX arrays of one tick in the loop.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from jaxtrain.pipeline.placement import Placement


class Target(IntEnum):
    """Where a result goes."""

    NEXT = 0
    PREVIOUS = 1
    HERE = 2
    END = 3


class Forward[Entry](NamedTuple):
    """Tables of the F slot, [ticks, stages]."""

    microbatch: Entry
    chunk: Entry
    replica: Entry
    held: Entry
    input: Entry
    residual: Entry
    target: Entry
    slot: Entry


class FromHead[Entry](NamedTuple):
    """Slots for the gradients that the head makes in this tick, and of which weight copy, [ticks, stages]."""

    replica: Entry
    slot: Entry


class Backward[Entry](NamedTuple):
    """Tables of the B slot, [ticks, stages]."""

    microbatch: Entry
    chunk: Entry
    replica: Entry
    held: Entry
    gradient: Entry
    residual: Entry
    fused: Entry
    deferred: Entry
    target: Entry
    slot: Entry


class Weight[Entry](NamedTuple):
    """Tables of the W slots, [ticks, stages, slots]; no slots where the schedule does not split its backward."""

    microbatch: Entry
    chunk: Entry
    replica: Entry
    held: Entry
    residual: Entry
    deferred: Entry


class Arrivals[Entry](NamedTuple):
    """Slots for what was sent in the tick before, [ticks, stages]."""

    input_from_previous: Entry
    input_from_next: Entry
    gradient_from_previous: Entry
    gradient_from_next: Entry


class Slots(NamedTuple):
    """Slots of the four buffers, as many on every stage as the fullest one needs."""

    inputs: int
    residuals: int
    gradients: int
    deferred: int


class Payloads(NamedTuple):
    """Most arrays a stage sends in one tick to the next and to the previous stage."""

    next: int
    previous: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TickProgram:
    """What the executor runs. The module's docstring says how."""

    placement: Placement
    routes: tuple[int, ...]
    forward: Forward[np.ndarray]
    from_head: FromHead[np.ndarray]
    backward: Backward[np.ndarray]
    weight: Weight[np.ndarray]
    arrivals: Arrivals[np.ndarray]
    embedding: np.ndarray  # [ticks, replicas]: microbatch whose chunk 0 runs F
    head: np.ndarray  # [ticks, replicas]: microbatch whose last chunk runs F, or ran it in the tick before
    embedding_gradient: np.ndarray  # [ticks, replicas]: microbatch whose chunk 0 runs B
    slots: Slots
    residuals_by_stage: tuple[int, ...]
    payloads: Payloads
    ring: bool
    late_head: bool

    @property
    def ticks(self) -> int:
        return len(self.head)
