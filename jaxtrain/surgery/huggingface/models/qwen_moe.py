"""Qwen 2 MoE: small experts, and a shared one behind a gate. Qwen 3 MoE: without it. arXiv:2407.10671, 2505.09388."""

from dataclasses import replace
from typing import Any

from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.feed_forward.sigmoid_gated import SigmoidGatedConfig
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.surgery.huggingface.family import mlp_of
from jaxtrain.surgery.huggingface.layout import Axes, Tensor, torch_linear
from jaxtrain.surgery.huggingface.mixture_like import MIXTURE, MixtureLike, mixture_of
from jaxtrain.surgery.huggingface.models.qwen import QWEN, Qwen2, Qwen3
from jaxtrain.surgery.huggingface.settings import Settings

SHARED = "shared_expert_intermediate_size"


class Qwen2MoE(MixtureLike, Qwen2):
    model_type = "qwen2_moe"
    architecture = "Qwen2MoeForCausalLM"
    biases = (None, None)
    defaults = (
        MIXTURE
        | QWEN
        | {
            "num_key_value_heads": 16,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "qkv_bias": True,
            SHARED: 5632,
        }
    )

    def attention(self, s: Settings, common: AttentionConfig) -> AttentionConfig:
        return replace(common, biases=("query", "key", "value") if s["qkv_bias"] else ())

    def shared(self, s: Settings, activation: str) -> FeedForwardConfig | None:
        return SigmoidGatedConfig(layer=GatedMLPConfig(hidden=s[SHARED], activation=activation))

    def write_mixture(self, mixture: MixtureConfig) -> dict[str, Any]:
        return {SHARED: mlp_of(_gated(mixture)).hidden}

    def feed_forward_tensors(self, block: BlockConfig, D: Axes) -> list[Tensor]:
        F, path = (mlp_of(_gated(mixture_of(block))).hidden,), ("mlp", "shared", "layer")
        (gate,) = torch_linear("mlp.shared_expert_gate", D, (1,), "mlp", "shared", "gate")
        (part,) = gate.parts
        return [
            *super().feed_forward_tensors(block, D),
            *torch_linear("mlp.shared_expert.gate_proj", D, F, *path, "gate"),
            *torch_linear("mlp.shared_expert.up_proj", D, F, *path, "up"),
            *torch_linear("mlp.shared_expert.down_proj", F, D, *path, "down"),
            gate._replace(parts=(part._replace(path=("mlp", "shared", "gate")),)),
        ]


class Qwen3MoE(MixtureLike, Qwen3):
    model_type = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    defaults = (
        MIXTURE
        | QWEN
        | {
            "head_dim": None,
            "num_key_value_heads": 4,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        }
    )


def _gated(mixture: MixtureConfig) -> FeedForwardConfig:
    if not isinstance(mixture.shared, SigmoidGatedConfig):
        raise ValueError(f"it has shared={mixture.shared!r}, the family has a shared expert behind a gate")
    return mixture.shared.layer
