"""gpt-oss: sinks, windows in every other layer, and clamped experts with biases. OpenAI (2025), arXiv:2508.10925.

The experts of a layer are one tensor, in which the outputs of gate and up alternate. The published weights are in
MXFP4, which is refused: transformers saves them in bfloat16 after `from_pretrained` with dequantize.
"""

from dataclasses import replace
from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.feed_forward.clamped_gated_mlp import ClampedGatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.mixers.scores import Scores
from jaxtrain.nn.moe.routers import Softmax
from jaxtrain.surgery.huggingface.layout import Axes, Tensor, as_is, fused
from jaxtrain.surgery.huggingface.mixture_like import MIXTURE, MixtureLike, mixture_of, router_tensor
from jaxtrain.surgery.huggingface.rope import RopeKeys
from jaxtrain.surgery.huggingface.settings import Settings
from jaxtrain.surgery.huggingface.windows import Windows, listed_windows, write_layer_types


class GPTOSS(MixtureLike):
    model_type = "gpt_oss"
    architecture = "GptOssForCausalLM"
    count, width = "num_local_experts", "intermediate_size"
    always_renormalises = True
    biases = ("attention_bias", None)
    rope_keys = RopeKeys(default_theta=150_000.0)
    defaults = MIXTURE | {
        "attention_bias": True,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "sliding_window": 128,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    }

    def windows(self, s: Settings) -> Windows:
        if s.given("rope_scaling") is None and s.given("rope_parameters") is None:
            raise ValueError("config.json has no rope_scaling, which the family has: it must say it")
        return listed_windows(s, [layer % 2 == 0 for layer in range(s["num_hidden_layers"])])

    def write_windows(self, windows: Windows) -> dict[str, Any]:
        return write_layer_types(windows)

    def attention(self, s: Settings, common: AttentionConfig) -> AttentionConfig:
        s.pass_over("initial_context_length")  # a copy of the original length of YaRN
        s.require_same("experts_per_token", "num_experts_per_tok")
        return replace(common, scores=Scores(sinks=True))

    def mlp(self, s: Settings, hidden: int, activation: str, bias: bool) -> FeedForwardConfig:
        s.require("the activation of the family is its own", hidden_act="silu")
        mixture = super().mlp(s, hidden, activation, bias)
        assert isinstance(mixture, MixtureConfig)
        expert = ClampedGatedMLPConfig(
            hidden=hidden, alpha=float(s["swiglu_alpha"]), limit=float(s["swiglu_limit"]), bias=True
        )
        return replace(mixture, expert=expert, router=Softmax(bias=True))

    def write_mlp(self, config: DecoderConfig) -> dict[str, Any]:
        expert = _clamped(config.pattern[0])
        return {
            "intermediate_size": expert.hidden,
            "swiglu_alpha": expert.alpha,
            "swiglu_limit": expert.limit,
            "hidden_act": "silu",
        }

    def write_more(self, config: DecoderConfig) -> dict[str, Any]:
        return self.write_experts(config, _clamped(config.pattern[0]).hidden)

    def mixer_tensors(self, block: BlockConfig, D: Axes) -> list[Tensor]:
        heads = (block.mixer.heads,)
        return [*super().mixer_tensors(block, D), as_is("self_attn.sinks", heads, "mixer", "sinks")]

    def feed_forward_tensors(self, block: BlockConfig, D: Axes) -> list[Tensor]:
        experts, (width,), F = mixture_of(block).experts, D, _clamped(block).hidden
        gate, up, down = (("mlp", "experts", name) for name in ("gate", "up", "down"))
        return [
            router_tensor("mlp.router", D, experts),
            as_is("mlp.router.bias", (experts,), "mlp", "router_bias"),
            fused(
                "mlp.experts.gate_up_proj",
                (experts, width, 2 * F),
                ((*gate, "kernel"), lambda w: w[..., ::2]),
                ((*up, "kernel"), lambda w: w[..., 1::2]),
            ),
            fused(
                "mlp.experts.gate_up_proj_bias",
                (experts, 2 * F),
                ((*gate, "bias"), lambda b: b[:, ::2]),
                ((*up, "bias"), lambda b: b[:, 1::2]),
            ),
            as_is("mlp.experts.down_proj", (experts, F, width), *down, "kernel"),
            as_is("mlp.experts.down_proj_bias", (experts, width), *down, "bias"),
        ]


def _clamped(block: BlockConfig) -> ClampedGatedMLPConfig:
    expert = mixture_of(block).expert
    if not isinstance(expert, ClampedGatedMLPConfig):
        raise ValueError(f"it has the expert {type(expert).__name__}, the family has ClampedGatedMLPConfig")
    return expert
