"""Granite 3 MoE: Granite with small experts, all of which are in one tensor. Granite Team, IBM (2024)."""

from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.surgery.huggingface.layout import Axes, Tensor, fused
from jaxtrain.surgery.huggingface.mixture_like import MIXTURE, MixtureLike, mixture_of, router_tensor
from jaxtrain.surgery.huggingface.models.granite import MULTIPLIERS, Granite


class GraniteMoE(MixtureLike, Granite):
    model_type = "granitemoe"
    architecture = "GraniteMoeForCausalLM"
    count, width = "num_local_experts", "intermediate_size"
    always_renormalises = True
    biases = ("attention_bias", None)
    derived = ("head_dim",)
    defaults = MIXTURE | {
        "max_position_embeddings": 2048,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        **dict.fromkeys(MULTIPLIERS, 1.0),
    }

    def write_more(self, config: DecoderConfig) -> dict[str, Any]:
        return {**MixtureLike.write_more(self, config), **Granite.write_more(self, config)}

    def feed_forward_tensors(self, block: BlockConfig, D: Axes) -> list[Tensor]:
        experts, (width,), F = mixture_of(block).experts, D, self.dense(block).hidden
        within, path = "block_sparse_moe", ("mlp", "experts")
        return [
            router_tensor(f"{within}.router.layer", D, experts),
            fused(
                f"{within}.input_linear.weight",
                (experts, 2 * F, width),
                ((*path, "gate", "kernel"), lambda w: w[:, :F].swapaxes(1, 2)),
                ((*path, "up", "kernel"), lambda w: w[:, F:].swapaxes(1, 2)),
            ),
            fused(
                f"{within}.output_linear.weight",
                (experts, width, F),
                ((*path, "down", "kernel"), lambda w: w.swapaxes(1, 2)),
            ),
        ]
