"""The base class of families in the manner of DeepSeek: dense layers first, then mixtures with a shared expert.

DeepSeek-V2 (2024), arXiv:2405.04434; DeepSeek-V3 (2024), arXiv:2412.19437. A sigmoid router comes with a bias in the
choice of experts, the buffer `e_score_correction_bias`.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.moe.balances import Balance, RouterBias, RowLoss
from jaxtrain.nn.moe.routers import Sigmoid, Softmax
from jaxtrain.nn.moe.selections import GroupLimited, Selection, TopK
from jaxtrain.surgery.huggingface.family import mlp_of
from jaxtrain.surgery.huggingface.layout import Axes, Tensor, as_is, torch_linear
from jaxtrain.surgery.huggingface.llama_like import DEFAULTS
from jaxtrain.surgery.huggingface.mixture_like import MixtureLike, mixture_of
from jaxtrain.surgery.huggingface.settings import Settings

RATE = 0.001  # of the bias, in the training of DeepSeek-V3; config.json does not say it
SHARED_MIXTURE = DEFAULTS | {
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 0,
    "norm_topk_prob": False,
    "aux_loss_alpha": 0.0,
}


class SharedMixtureLike(MixtureLike):
    """A family with dense layers first and a shared expert. `sigmoid` tells the kind of its routers.

    Groups of experts are judged by their best `judged_by`. `next_layers` are layers behind the last one, which predict
    tokens further ahead and are not read.
    """

    count = "n_routed_experts"
    biases = (None, None)
    sigmoid: ClassVar[bool] = True
    judged_by: ClassVar[int] = 2

    def passed_over(self, settings: Mapping[str, Any]) -> str:
        layers, more = settings.get(self.layers), settings.get("num_nextn_predict_layers")
        if not isinstance(layers, int) or not isinstance(more, int) or not more:
            return self.ignored
        numbers = "|".join(re.escape(str(layers + i)) for i in range(min(more, 8)))
        return rf"{self.ignored}|model\.layers\.({numbers})\..*"

    def first_layers(self, s: Settings) -> int:
        first, layers = s["first_k_dense_replace"], s["num_hidden_layers"]
        if not 0 <= first < layers:
            raise ValueError(f"first_k_dense_replace={first} must be at least 0 and below num_hidden_layers={layers}")
        return first

    def mlp(self, s: Settings, hidden: int, activation: str, bias: bool) -> FeedForwardConfig:
        s.pass_over("num_nextn_predict_layers", "num_mtp_layers", "ep_size")
        s.require("experts are in all layers but the first ones", moe_layer_freq=1)
        s.require("a balance loss is that of a row", seq_aux=True)
        s.require("the family's routers", scoring_func="sigmoid" if self.sigmoid else "softmax")
        width, weight = s[self.width], float(s["aux_loss_alpha"])
        balances: tuple[Balance, ...] = (RouterBias(rate=RATE),) if self.sigmoid else ()
        return MixtureConfig(
            experts=self.experts(s),
            top_k=s["num_experts_per_tok"],
            expert=GatedMLPConfig(hidden=width, activation=activation),
            router=Sigmoid() if self.sigmoid else Softmax(),
            selection=self.selection(s),
            renormalise=s["norm_topk_prob"],
            scale=float(s["routed_scaling_factor"]),
            balances=(*balances, RowLoss(coefficient=weight)) if weight else balances,
            shared=GatedMLPConfig(hidden=width * s["n_shared_experts"], activation=activation),
        )

    def selection(self, s: Settings) -> Selection:
        groups, kept = s.or_else("n_group", 1), s.or_else("topk_group", 1)
        return TopK() if groups == kept == 1 else GroupLimited(groups=groups, kept=kept, judged_by=self.judged_by)

    def write_mlp(self, config: DecoderConfig) -> dict[str, Any]:
        dense = config.blocks[0].mlp
        written = super().write_mlp(config)
        return written if isinstance(dense, MixtureConfig) else written | {"intermediate_size": mlp_of(dense).hidden}

    def write_more(self, config: DecoderConfig) -> dict[str, Any]:
        mixtures = [isinstance(block.mlp, MixtureConfig) for block in config.blocks]
        first = mixtures.index(True) if True in mixtures else len(mixtures)
        mixture = mixture_of(config.blocks[min(first, len(mixtures) - 1)])
        expert, groups = mlp_of(mixture.expert), mixture.selection
        if mixture.shared is None or mlp_of(mixture.shared).hidden % expert.hidden:
            raise ValueError(f"it has shared={mixture.shared!r}, the family has a whole number of experts there")
        limited = groups if isinstance(groups, GroupLimited) else GroupLimited(groups=1, kept=1)
        return {
            self.count: mixture.experts,
            self.width: expert.hidden,
            "num_experts_per_tok": mixture.top_k,
            "n_shared_experts": mlp_of(mixture.shared).hidden // expert.hidden,
            "n_group": limited.groups,
            "topk_group": limited.kept,
            "routed_scaling_factor": mixture.scale,
            "norm_topk_prob": mixture.renormalise,
            "first_k_dense_replace": first,
            "aux_loss_alpha": float(sum(balance.weight for balance in mixture.balances)),
            "num_nextn_predict_layers": 0,
        }

    def feed_forward_tensors(self, block: BlockConfig, D: Axes) -> list[Tensor]:
        tensors = super().feed_forward_tensors(block, D)
        if not isinstance(block.mlp, MixtureConfig):
            return tensors
        assert block.mlp.shared is not None, "the family does not express a mixture without one"
        F, path = (mlp_of(block.mlp.shared).hidden,), ("mlp", "shared")
        if self.sigmoid:
            bias = as_is(f"{self.within}.gate.e_score_correction_bias", (block.mlp.experts,), "mlp", "bias")
            tensors.append(bias._replace(exact=True))
        return [
            *tensors,
            *torch_linear(f"{self.within}.shared_experts.gate_proj", D, F, *path, "gate"),
            *torch_linear(f"{self.within}.shared_experts.up_proj", D, F, *path, "up"),
            *torch_linear(f"{self.within}.shared_experts.down_proj", F, D, *path, "down"),
        ]
