"""Pipeline parallelism as a gradient strategy: the decoder in parts, run by a schedule over the stages of the mesh."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from jaxtyping import Array, Float

from jaxtrain.models.decoder import Decoder, DecoderConfig, abstract_model, context_of
from jaxtrain.models.members import Members
from jaxtrain.models.trees import of_stack, over_repeats
from jaxtrain.nn.heads.head import Head
from jaxtrain.nn.layer import Keys, Out, TokenContext, joined
from jaxtrain.pipeline.executor import Parts, Result, value_and_grad
from jaxtrain.pipeline.lower import lower
from jaxtrain.pipeline.residuals import RepeatResiduals, Residuals
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.schedules.paired_interleaved import PairedInterleaved
from jaxtrain.pipeline.simulator import Costs
from jaxtrain.pipeline.stages import stages_of_mesh
from jaxtrain.pipeline.table import Table
from jaxtrain.planning.stage_costs import repeat_costs
from jaxtrain.shapes import Batch, ModelState, ParamTree
from jaxtrain.train.gradients.base import Loss, Strategy, Value, deal_out


class Plan(NamedTuple):
    """What `lower` makes a program of: the table of a schedule, and the costs of its actions."""

    table: Table
    costs: Costs


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipelined(Strategy):
    """Run `microbatches` equal parts of the batch through the stages of the mesh, in the order of a schedule."""

    microbatches: int
    schedule: Schedule = PairedInterleaved()
    residuals: Residuals = RepeatResiduals()
    paper: ClassVar[str] = "arXiv:1811.06965"

    def __post_init__(self):
        if self.microbatches < 1:
            raise ValueError(f"microbatches={self.microbatches}: must be at least 1")

    def check(self, stages: int, model: DecoderConfig) -> None:
        """Raise ValueError if this many stages cannot run the model, naming the rule and the nearest valid value."""
        if model.remat.offload:
            raise ValueError(
                f"model.remat={model.remat}: a pipeline keeps its buffers on the device; "
                "use SaveOutputs() or FullRemat()"
            )
        if model.first:
            raise ValueError(
                f"model.first has {len(model.first)} blocks, and stages run the repeats of the pattern alone: use "
                "gradients=Accumulate(...), or give all blocks in model.pattern"
            )
        if model.sharing:
            raise ValueError(
                f"model.sharing={model.sharing!r}: every stage of a pipeline has weights of its own; "
                "use gradients=Accumulate(...), or leave sharing out"
            )
        if not of_stack(abstract_model(model).shapes, "blocks").params:
            raise ValueError(
                f"model.trainable={model.trainable!r} trains nothing in the blocks, which stages run: "
                "use gradients=Accumulate(...), or train something there"
            )
        try:
            self.plan(stages, model, model.max_length)
        except ValueError as error:
            raise ValueError(f"{self.schedule} with mesh.stage={stages}: {error}") from None

    def plan(self, stages: int, model: DecoderConfig, length: int) -> Plan:
        """Return the schedule's table for a model, and the costs of its actions at a sequence length."""
        repeat, recomputes = self.repeat_costs(model, length), self.residuals.recomputes
        schedule = self.schedule.tuned(repeat.of_repeats(model.repeats / stages, again=recomputes))
        table = schedule.write(stages, self.microbatches)
        chunks = [len(repeats) for repeats in table.placement.repeats(model.repeats)]
        return Plan(table, repeat.of_chunks(chunks, again=recomputes))

    def repeat_costs(self, model: DecoderConfig, length: int) -> Costs:
        """Return the costs of one repeat of the pattern. Its backward includes the forward that remat recomputes."""
        return repeat_costs(model, length, forward_again=model.remat.recomputes)

    def __call__(self, loss: Loss, params: ParamTree, batch: Batch, keys: Keys | None) -> tuple[Value, ParamTree]:
        program = lower(*self.plan(stages_of_mesh(), loss.model(params).config, batch.tokens.shape[1]))
        data = deal_out(Data(batch, keys, loss.real_tokens), self.microbatches)
        model = parts(loss, params), program, *taken_apart(loss, params)
        return put_together(loss, value_and_grad(*model, data, residuals=self.residuals))


class Data(NamedTuple):
    """What the repeats of a microbatch read besides their arrays and their activations."""

    batch: Batch
    keys: Keys | None
    real_tokens: Float[Array, ""]  # of the whole batch


def taken_apart(loss: Loss, params: ParamTree) -> tuple[ParamTree, ModelState]:
    """Return the parameters outside of the repeats, and the arrays of the repeats."""
    outer = {name: leaf for name, leaf in params.items() if name != "stacks"}
    return outer, of_stack(ModelState(params, loss.frozen, loss.buffers), "blocks")


def put_together(loss: Loss, result: Result) -> tuple[Value, ParamTree]:
    """Return value and gradient in the form in which every strategy returns them."""
    value, terms = result.head
    layers = joined(blocks=over_repeats(result.repeats))
    gradient = {**result.outer_gradient, "stacks": {"blocks": result.blocks_gradient}}
    return (value + loss.of_layers(layers), terms._replace(layers=layers)), gradient


class _ModelAfterBlocks:
    """The model that an objective gets after the blocks have run over `batch`: the head reads their output `x`."""

    def __init__(self, model: Decoder, batch: Batch, x: Float[Array, "B L D"]):
        self._model, self._x = model, x
        self._batch: Batch | None = batch

    def hidden(self, batch: Batch, keys: Keys | None = None, taps: Collection[str] = ()) -> Out:
        """Return the hidden states that the head reads, once, for the batch that ran.

        Raises:
            ValueError: for another batch, a second time, or with taps.
        """
        if batch is not self._batch or taps:
            raise ValueError(
                "gradients=Pipelined(...) runs the blocks once, over the batch as it is, and has no taps; "
                "this objective asks for more: use Accumulate(...)"
            )
        self._batch = None
        return Out(self._x)

    @property
    def head(self) -> Head:
        return self._model.head

    @property
    def teacher(self) -> Decoder | Members | None:
        return self._model.teacher


def parts(loss: Loss, params: ParamTree) -> Parts:
    """Return the decoder of a loss in the parts that the executor runs."""
    model = loss.model(params)
    config, pattern = model.config, model.pattern()

    def embed(outer, data: Data):
        return loss.model(params | outer).embed(data.batch.tokens, context_of(data.batch, data.keys))

    def repeat(x, state: ModelState, context: TokenContext):
        y, _, sums, _ = pattern(state, x, context, model.no_states()["blocks"])
        return y, sums

    def with_loss(weights, inputs, x):
        data, index, frozen, buffers = inputs
        context = context_of(data.batch, data.keys).in_layer(index)
        y, sums = config.remat.wrap(repeat)(x, ModelState(weights, frozen, buffers), context)
        layer_loss = loss._replace(real_tokens=data.real_tokens).of_layers(sums) if sums.terms else None
        return (y, layer_loss), sums

    def head(outer, data: Data, x):
        value = loss.of_model(_ModelAfterBlocks(loss.model(params | outer), data.batch, x), data.batch, data.keys)
        return value[0], value

    return Parts(
        embed=embed,
        repeat=with_loss,
        head=head,
        outer_axes={name: leaf for name, leaf in model.axes().params.items() if name != "stacks"},
        repeat_axes=model.repeat_axes(),
        compute_dtype=config.compute_dtype,
    )
