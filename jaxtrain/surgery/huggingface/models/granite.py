"""Granite 3: Llama with four multipliers. Granite Team, IBM (2024), Granite 3.0 Language Models."""

from dataclasses import replace
from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.surgery.huggingface.family import attention_of
from jaxtrain.surgery.huggingface.llama_like import DEFAULTS, LlamaLike, scale_of, with_scores
from jaxtrain.surgery.huggingface.settings import Settings

MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")


class Granite(LlamaLike):
    model_type = "granite"
    architecture = "GraniteForCausalLM"
    biases = ("attention_bias", "mlp_bias")
    defaults = DEFAULTS | {"max_position_embeddings": 2048, **dict.fromkeys(MULTIPLIERS, 1.0)}

    def attention(self, s: Settings, common: AttentionConfig) -> AttentionConfig:
        return with_scores(common, float(s["attention_multiplier"]))

    def block(self, s: Settings, common: BlockConfig) -> BlockConfig:
        return replace(common, residual_scale=float(s["residual_multiplier"]))

    def whole(self, s: Settings, common: DecoderConfig) -> DecoderConfig:
        s.pass_over("attention_dropout")  # training only; published files have 0.1
        scaling = s["logits_scaling"]
        if scaling <= 0:
            raise ValueError(f"logits_scaling={scaling!r} must be above 0: logits are divided by it")
        return replace(common, embedding_scale=float(s["embedding_multiplier"]), logit_scale=1.0 / scaling)

    def write_more(self, config: DecoderConfig) -> dict[str, Any]:
        block = config.pattern[0]
        return {
            "embedding_multiplier": config.embedding_scale,
            "residual_multiplier": block.residual_scale,
            "attention_multiplier": scale_of(attention_of(block)),
            "logits_scaling": _inverse(config.logit_scale),
        }


def _inverse(scale: float) -> float:
    """Return the number whose inverse is the scale, the shortest of those that rounding leaves."""
    short = round(1.0 / scale, 6)
    return short if short and 1.0 / short == scale else 1.0 / scale
