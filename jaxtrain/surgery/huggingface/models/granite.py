"""Granite 3: Llama with four multipliers. Granite Team, IBM (2024), Granite 3.0 Language Models."""

from dataclasses import replace
from typing import Any, ClassVar

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.embeddings import ScaledEmbedding
from jaxtrain.nn.joins import ScaledPreNorm
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.surgery.huggingface.family import attention_of, head_of, scale_of
from jaxtrain.surgery.huggingface.llama_like import DEFAULTS, LlamaLike, score_scale, with_scores
from jaxtrain.surgery.huggingface.settings import Settings

MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")


class Granite(LlamaLike):
    model_type = "granite"
    architecture = "GraniteForCausalLM"
    biases: ClassVar[tuple[str | None, str | None]] = ("attention_bias", "mlp_bias")
    defaults = DEFAULTS | {"max_position_embeddings": 2048, **dict.fromkeys(MULTIPLIERS, 1.0)}

    def attention(self, s: Settings, common: AttentionConfig) -> AttentionConfig:
        return with_scores(common, float(s["attention_multiplier"]))

    def block(self, s: Settings, common: BlockConfig) -> BlockConfig:
        scale = float(s["residual_multiplier"])
        return common if scale == 1.0 else replace(common, join=ScaledPreNorm(scale=scale))

    def whole(self, s: Settings, common: DecoderConfig) -> DecoderConfig:
        s.pass_over("attention_dropout")  # training only; published files have 0.1
        scaling = s["logits_scaling"]
        if scaling <= 0:
            raise ValueError(f"logits_scaling={scaling!r} must be above 0: logits are divided by it")
        scale, head = float(s["embedding_multiplier"]), head_of(tied=common.head.tied, scale=1.0 / scaling)
        embedding = common.embedding if scale == 1.0 else ScaledEmbedding(scale=scale)
        return replace(common, embedding=embedding, head=head)

    def write_more(self, config: DecoderConfig) -> dict[str, Any]:
        block = config.pattern[0]
        return {
            "embedding_multiplier": scale_of(config.embedding),
            "residual_multiplier": scale_of(block.join),
            "attention_multiplier": score_scale(attention_of(block)),
            "logits_scaling": _inverse(scale_of(config.head)),
        }


def _inverse(scale: float) -> float:
    """Return the number whose inverse is the scale, the shortest of those that rounding leaves."""
    short = round(1.0 / scale, 6)
    return short if short and 1.0 / short == scale else 1.0 / scale
