"""What linears with an adapter share: a base of any kind, and an update of low rank that is zero at the start."""

from typing import Any

from flax import nnx

from jaxtrain.nn.linear.base import Linear, LinearConfig, Side, bias_of
from jaxtrain.nn.linear.low_rank import Factors
from jaxtrain.nn.param import Adapter


class Adapted(Linear):
    """A base, and an update of which all parameters are adapters. The bias is not the base's, but the linear's.

    `config` is a dataclass with the fields `rank` and `base`, and the factor `scale` of the update.
    """

    def __init__(self, config: Any, inputs: Side, outputs: Side, *, bias: bool, outputs_first: bool, rngs: nnx.Rngs):
        self.config, base = config, config.base
        assert isinstance(base, LinearConfig)
        self.base = base.build(inputs, outputs, outputs_first=outputs_first, rngs=rngs)
        self.update = Factors(
            config.rank, inputs, outputs, outputs_first=outputs_first, zero=True, variable=Adapter, rngs=rngs
        )
        self.bias = bias_of(outputs) if bias else None
