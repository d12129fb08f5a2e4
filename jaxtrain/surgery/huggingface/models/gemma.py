"""Gemma, Gemma 2 and the text model of Gemma 3. arXiv:2403.08295, arXiv:2408.00118, arXiv:2503.19786."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.embeddings import ScaledEmbedding
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.heads import CappedHead
from jaxtrain.nn.joins import SandwichNorm
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.norms.rms_norm import OffsetRMSNormConfig
from jaxtrain.nn.positions import RotaryEmbedding
from jaxtrain.nn.qk_norms import PerHead
from jaxtrain.surgery.huggingface.family import attention_of, head_of
from jaxtrain.surgery.huggingface.llama_like import DEFAULTS, LlamaLike, score_scale, with_scores, write_two_ropes
from jaxtrain.surgery.huggingface.rope import RopeKeys, read_rope
from jaxtrain.surgery.huggingface.settings import Settings
from jaxtrain.surgery.huggingface.windows import (
    FULL,
    SLIDING,
    Windows,
    listed_windows,
    patterned_windows,
    write_layer_types,
)

GEMMA = DEFAULTS | {
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
LATER = GEMMA | {
    "hidden_activation": "gelu_pytorch_tanh",
    "num_key_value_heads": 4,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}


class AnyGemma(LlamaLike):
    """A family with norm scales around 0 and scaled embeddings."""

    def norm(self, epsilon: float) -> OffsetRMSNormConfig:
        return OffsetRMSNormConfig(epsilon=epsilon)

    def whole(self, s: Settings, common: DecoderConfig) -> DecoderConfig:
        return replace(common, embedding=ScaledEmbedding())


class Gemma(AnyGemma):
    """Gemma. Published files say `gelu`, for which all programs take the tanh form."""

    model_type = "gemma"
    architecture = "GemmaForCausalLM"
    defaults = GEMMA | {"num_key_value_heads": 16, "hidden_act": "gelu_pytorch_tanh"}

    def mlp(self, s: Settings, hidden: int, activation: str, bias: bool) -> GatedMLPConfig:
        s.require("all models of this model_type have it", hidden_activation="gelu_pytorch_tanh")
        if activation not in ("gelu", "gelu_tanh"):
            raise ValueError(f"hidden_act={s['hidden_act']!r} is not supported, only 'gelu_pytorch_tanh'")
        return GatedMLPConfig(hidden=hidden, activation="gelu_tanh")

    def write_more(self, config: DecoderConfig) -> dict[str, Any]:
        return {"hidden_activation": "gelu_pytorch_tanh"}


class LaterGemma(AnyGemma):
    """A family with norms on both sides, a scale of the scores, and maybe soft caps."""

    activation = "hidden_activation"
    norms = {
        "mixer_norm": "input_layernorm",
        "mixer_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    }

    def attention(self, s: Settings, common: AttentionConfig) -> AttentionConfig:
        scalar = s["query_pre_attn_scalar"]
        if scalar <= 0:
            raise ValueError(f"query_pre_attn_scalar={scalar!r} must be above 0")
        return with_scores(common, scalar**-0.5, s["attn_logit_softcapping"])

    def block(self, s: Settings, common: BlockConfig) -> BlockConfig:
        return replace(common, join=SandwichNorm())

    def whole(self, s: Settings, common: DecoderConfig) -> DecoderConfig:
        head = head_of(tied=common.head.tied, cap=s["final_logit_softcapping"])
        return replace(super().whole(s, common), head=head)

    def write_windows(self, windows: Windows) -> dict[str, Any]:
        return write_layer_types(windows)

    def write_more(self, config: DecoderConfig) -> dict[str, Any]:
        mixer = attention_of(config.pattern[0])
        return {
            "query_pre_attn_scalar": round(score_scale(mixer) ** -2),
            "attn_logit_softcapping": mixer.scores and mixer.scores.softcap,
            "final_logit_softcapping": config.head.cap if isinstance(config.head, CappedHead) else None,
        }


class Gemma2(LaterGemma):
    model_type = "gemma2"
    architecture = "Gemma2ForCausalLM"
    defaults = LATER | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}

    def windows(self, s: Settings) -> Windows:
        s.require_same("hidden_act", "hidden_activation")
        s.require_same("sliding_window_size", "sliding_window")
        return listed_windows(s, [i % 2 == 0 for i in range(s["num_hidden_layers"])])


class Gemma3(LaterGemma):
    """The text model of Gemma 3. Five layers of six have a window and, with it, another base of rotary embeddings."""

    model_type = "gemma3_text"
    architecture = "Gemma3ForCausalLM"
    defaults = LATER | {"max_position_embeddings": 131_072, "sliding_window_pattern": 6}
    rope_keys = RopeKeys(default_theta=1_000_000.0, layer_type=FULL)
    local_rope_keys = RopeKeys(theta="rope_local_base_freq", layer_type=SLIDING, scaled=False)

    def windows(self, s: Settings) -> Windows:
        return patterned_windows(s)

    def positions(self, s: Settings, layer: int, window: int | None) -> RotaryEmbedding:
        of_full, of_sliding = (read_rope(s, keys) for keys in (self.rope_keys, self.local_rope_keys))
        return of_sliding if window else of_full

    def attention(self, s: Settings, common: AttentionConfig) -> AttentionConfig:
        norm = OffsetRMSNormConfig(epsilon=float(s["rms_norm_eps"]))
        return replace(super().attention(s, common), qk_norm=PerHead(norm=norm))

    def write_rope(self, attentions: Sequence[AttentionConfig]) -> dict[str, Any]:
        return write_two_ropes(attentions, self.rope_keys, self.local_rope_keys)
