"""The base class of families with the settings of Llama whose feed-forward layers are mixtures of experts.

The balance loss of transformers is taken over the means of all layers, and is `num_experts_per_tok` times the
coefficient where loads are alike. Ours is the sum of the layers' losses, each of them its coefficient there. The
coefficients are translated, so that balanced loads have the same loss.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.moe.balances import RowLoss
from jaxtrain.surgery.huggingface.family import mlp_of
from jaxtrain.surgery.huggingface.layout import Axes, Tensor, of_expert, torch_linear
from jaxtrain.surgery.huggingface.llama_like import DEFAULTS, LlamaLike
from jaxtrain.surgery.huggingface.settings import Settings

MIXTURE = DEFAULTS | {
    "router_aux_loss_coef": 0.001,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
}


COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")  # transformers writes one for another


class MixtureLike(LlamaLike):
    """A family whose feed-forward layers are mixtures, all of them but for the first ones of some families.

    `width` is the setting for the hidden size of experts. Their number has one of several names, of which `count` is
    written. `within` begins the names of a mixture's tensors, and `projections` are the linears of an expert there.
    `always_renormalises` is for families in which that is no setting.
    """

    count: ClassVar[str] = "num_experts"
    width: ClassVar[str] = "moe_intermediate_size"
    within: ClassVar[str] = "mlp"
    projections: ClassVar[Sequence[str]] = ("gate_proj", "up_proj", "down_proj")
    always_renormalises: ClassVar[bool] = False

    def mlp(self, s: Settings, hidden: int, activation: str, bias: bool) -> FeedForwardConfig:
        if not self.always_renormalises:
            s.require("layers without experts among others are not understood", decoder_sparse_step=1)
            if s["mlp_only_layers"]:
                raise ValueError(
                    f"mlp_only_layers={s['mlp_only_layers']}: convert reads experts in all layers or in none"
                )
        top_k, weight = s["num_experts_per_tok"], float(s["router_aux_loss_coef"])
        coefficient = weight * top_k / s["num_hidden_layers"]
        return MixtureConfig(
            experts=self.experts(s),
            top_k=top_k,
            expert=GatedMLPConfig(hidden=s[self.width], activation=activation, bias=bias),
            renormalise=self.always_renormalises or s["norm_topk_prob"],
            balances=(RowLoss(coefficient=coefficient),) if coefficient else (),
            shared=self.shared(s, activation),
        )

    def experts(self, s: Settings) -> int:
        """Return the number of experts."""
        names = [name for name in COUNTS if s.given(name) is not None] or [self.count]
        found = {name: s[name] for name in names}
        if len(set(found.values())) > 1:
            raise ValueError(f"config.json has two numbers of experts, {found}: remove one")
        return found[names[0]]

    def shared(self, s: Settings, activation: str) -> FeedForwardConfig | None:
        """Return the layer that all tokens have."""
        return None

    def write_mixture(self, mixture: MixtureConfig) -> dict[str, Any]:
        """Return what a family writes of its mixtures beside the common settings."""
        return {}

    def dense(self, block: BlockConfig) -> MLPConfig | GatedMLPConfig:
        return mlp_of(mixture_of(block).expert)

    def write_more(self, config: DecoderConfig) -> dict[str, Any]:
        return self.write_experts(config, self.dense(config.pattern[0]).hidden)

    def write_experts(self, config: DecoderConfig, hidden: int) -> dict[str, Any]:
        """Return the settings of the mixtures, whose experts have this hidden size."""
        mixture = mixture_of(config.pattern[0])
        told = {} if self.always_renormalises else {"norm_topk_prob": mixture.renormalise, "mlp_only_layers": []}
        return {
            self.count: mixture.experts,
            self.width: hidden,
            "num_experts_per_tok": mixture.top_k,
            "router_aux_loss_coef": sum(balance.weight for balance in mixture.balances) * config.layers / mixture.top_k,
            **told,
            **self.write_mixture(mixture),
        }

    def feed_forward_tensors(self, block: BlockConfig, D: Axes) -> list[Tensor]:
        if not isinstance(block.mlp, MixtureConfig):
            return self.mlp_tensors(mlp_of(block.mlp).bias, D, (mlp_of(block.mlp).hidden,))
        F = (self.dense(block).hidden,)
        sides = {"gate": (D, F), "up": (D, F), "down": (F, D)}
        tensors = [router_tensor(f"{self.within}.gate", D, block.mlp.experts)]
        for number in range(block.mlp.experts):
            name = f"{self.within}.experts.{number}"
            for ours, theirs in zip(sides, self.projections, strict=True):
                tensors += of_expert(number, torch_linear(f"{name}.{theirs}", *sides[ours], "mlp", "experts", ours))
        return tensors


def mixture_of(block: BlockConfig) -> MixtureConfig:
    """Return the mixture of a block. Raises ValueError for another feed-forward layer."""
    if not isinstance(block.mlp, MixtureConfig):
        raise ValueError(f"it has the feed-forward layer {type(block.mlp).__name__}, the family has mixtures")
    return block.mlp


def router_tensor(name: str, D: Axes, experts: int) -> Tensor:
    """Return the tensor of a router's matrix."""
    (weight,) = torch_linear(name, D, (experts,), "mlp", "router")
    (part,) = weight.parts
    return weight._replace(parts=(part._replace(path=("mlp", "router")),))
