"""GLM-4.5: the mixtures of DeepSeek-V3 with grouped-query attention. arXiv:2508.06471."""

from dataclasses import replace
from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.qk_norms import PerHead
from jaxtrain.surgery.huggingface.family import attention_of
from jaxtrain.surgery.huggingface.rope import RopeKeys
from jaxtrain.surgery.huggingface.settings import Settings
from jaxtrain.surgery.huggingface.shared_mixture_like import SHARED_MIXTURE, SharedMixtureLike


class GLM4MoE(SharedMixtureLike):
    model_type = "glm4_moe"
    architecture = "Glm4MoeForCausalLM"
    rope_keys = RopeKeys(fraction="partial_rotary_factor", default_fraction=0.5)
    defaults = SHARED_MIXTURE | {
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_routed_experts": 128,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "use_qk_norm": False,
    }

    def attention(self, s: Settings, common: AttentionConfig) -> AttentionConfig:
        norm = PerHead(norm=RMSNormConfig(epsilon=float(s["rms_norm_eps"]))) if s["use_qk_norm"] else None
        biases = ("query", "key", "value") if s["attention_bias"] else ()
        return replace(common, qk_norm=norm, biases=biases)

    def _bias(self, s: Settings, key: str | None, usual: str) -> bool:
        return False  # attention_bias is of queries, keys and values

    def write_mixers(self, config: DecoderConfig) -> dict[str, Any]:
        mixer = attention_of(config.pattern[0])
        told = {"use_qk_norm": mixer.qk_norm is not None, "attention_bias": bool(mixer.biases)}
        return super().write_mixers(config) | told
