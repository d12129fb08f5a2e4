"""What linears with an adapter share: a base of any kind, and an update of low rank that is zero at the start."""

from dataclasses import dataclass

from flax import nnx

from jaxtrain.nn.linear.base import Linear, LinearConfig, Side, bias_of
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.linear.low_rank import Factors
from jaxtrain.nn.param import Adapter
from jaxtrain.ranges import check_at_least_one, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptedConfig(LinearConfig):
    """A linear `base` and an adapter of low rank, whose update is multiplied by `scale`."""

    rank: int
    alpha: float = 16.0
    base: LinearConfig = Dense()

    def __post_init__(self):
        check_at_least_one(self, "rank")
        check_positive(self, "alpha")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def check_head(self) -> None:
        self.base.check_head()


class Adapted(Linear):
    """A base, and an update of which all parameters are adapters. The bias is not the base's, but the linear's."""

    def __init__(
        self, config: AdaptedConfig, inputs: Side, outputs: Side, *, bias: bool, outputs_first: bool, rngs: nnx.Rngs
    ):
        self.config = config
        self.base = config.base.build(inputs, outputs, outputs_first=outputs_first, rngs=rngs)
        self.update = Factors(
            config.rank, inputs, outputs, outputs_first=outputs_first, zero=True, variable=Adapter, rngs=rngs
        )
        self.bias = bias_of(outputs) if bias else None
