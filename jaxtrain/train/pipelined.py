"""Pipeline parallelism as a gradient strategy: the decoder in parts, run by a schedule over the stages of the mesh."""

from dataclasses import dataclass
from typing import NamedTuple

from flax import nnx
from jaxtyping import Array, Float, Key

from jaxtrain.models.decoder import Decoder, DecoderConfig, context_of
from jaxtrain.nn.head import Head
from jaxtrain.nn.remat import FullRemat
from jaxtrain.pipeline.executor import Parts, value_and_grad
from jaxtrain.pipeline.keep import ChunkInput, Keep, LayerValues
from jaxtrain.pipeline.lower import lower
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.schedules.paired_interleaved import PairedInterleaved
from jaxtrain.pipeline.simulator import Costs
from jaxtrain.pipeline.stages import stages_of_mesh
from jaxtrain.pipeline.table import Table
from jaxtrain.planning.stage_costs import layer_costs
from jaxtrain.shapes import Batch, ParamTree
from jaxtrain.train.gradients import Loss, Value, deal_out


class Plan(NamedTuple):
    """What `lower` makes the program of."""

    table: Table
    costs: Costs


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipelined:
    """Run `microbatches` equal parts of the batch through the stages of the mesh, in the order of a schedule."""

    microbatches: int
    schedule: Schedule = PairedInterleaved()
    keep: Keep = LayerValues()

    def __post_init__(self):
        if self.microbatches < 1:
            raise ValueError(f"microbatches={self.microbatches}: must be at least 1")

    def check(self, stages: int, model: DecoderConfig) -> None:
        """Raise ValueError where so many stages cannot run the model, naming the rule and the nearest valid value."""
        if model.remat.offload:
            raise ValueError(
                f"model.remat={model.remat}: a pipeline keeps its buffers on the device; "
                "use SaveOutputs() or FullRemat()"
            )
        try:
            self.plan(stages, model, model.max_length)
        except ValueError as error:
            raise ValueError(f"{self.schedule} with mesh.stage={stages}: {error}") from None

    def plan(self, stages: int, model: DecoderConfig, length: int) -> Plan:
        """Return the schedule's table for a model, and what its actions cost at this length."""
        layer, again = self.layer_costs(model, length), isinstance(self.keep, ChunkInput)
        schedule = self.schedule.tuned(layer.of_layers(model.repeats / stages, again=again))
        table = schedule.write(stages, self.microbatches)
        chunks = [len(layers) for layers in table.placement.layers(model.repeats)]
        return Plan(table, layer.of_chunks(chunks, again=again))

    def layer_costs(self, model: DecoderConfig, length: int) -> Costs:
        """Return what one repeat of the pattern costs, with what remat has its backward run again."""
        return layer_costs(model, length, forward_again=isinstance(model.remat, FullRemat))

    def __call__(
        self, loss: Loss, params: ParamTree, batch: Batch, keys: Key[Array, " B"] | None
    ) -> tuple[Value, ParamTree]:
        outer = {name: leaf for name, leaf in params.items() if name != "blocks"}
        model = nnx.merge(loss.graph, params)
        program = lower(*self.plan(stages_of_mesh(), model.config, batch.tokens.shape[1]))
        data = deal_out((batch, keys), self.microbatches)
        value, douter, dblocks = value_and_grad(
            parts(loss, params), program, outer, params["blocks"], data, keep=self.keep
        )
        return value, {**douter, "blocks": dblocks}


class _BlocksHaveRun(NamedTuple):
    """The model as an objective sees it once the blocks have run: `x` is what the head reads."""

    model: Decoder
    x: Float[Array, "B L D"]

    def __call__(self, batch: Batch, keys: Key[Array, " B"] | None = None) -> Float[Array, "B L W"]:
        return self.head.logits(self.x)

    def hidden(self, batch: Batch, keys: Key[Array, " B"] | None = None) -> Float[Array, "B L D"]:
        return self.x

    @property
    def head(self) -> Head:
        return self.model.head


def parts(loss: Loss, params: ParamTree) -> Parts:
    """Return the decoder of a loss in the parts that the executor runs."""
    model = nnx.merge(loss.graph, params)
    config, pattern = model.config, model.pattern()

    def with_outer(outer):
        return nnx.merge(loss.graph, {**params, **outer})

    def embed(outer, data):
        batch, keys = data
        return with_outer(outer).embed(batch.tokens, context_of(batch, keys))

    def repeat(x, weights, context):
        return pattern(weights, x, context, model.no_states())[0]

    def layer(weights, data, x):
        (batch, keys), index = data
        return config.remat.wrap(repeat)(x, weights, context_of(batch, keys).in_layer(index))

    def head(outer, data, hidden):
        batch, keys = data
        value = loss.of_model(_BlocksHaveRun(with_outer(outer), hidden), batch, keys)
        return value[0], value

    return Parts(
        embed=embed,
        layer=layer,
        head=head,
        outer_axes={name: leaf for name, leaf in model.axes().items() if name != "blocks"},
        layer_axes=model.layer_axes(),
        compute_dtype=config.compute_dtype,
    )
