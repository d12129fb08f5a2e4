"""OLMoE: sixty-four small experts, and norms of queries and keys over all heads. arXiv:2409.02060."""

from dataclasses import replace

from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.qk_norms import AllHeads
from jaxtrain.surgery.huggingface.mixture_like import MIXTURE, MixtureLike
from jaxtrain.surgery.huggingface.settings import Settings


class OLMoE(MixtureLike):
    model_type = "olmoe"
    architecture = "OlmoeForCausalLM"
    width = "intermediate_size"
    derived = ("head_dim",)
    defaults = MIXTURE | {
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "router_aux_loss_coef": 0.01,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "clip_qkv": None,
    }

    def attention(self, s: Settings, common: AttentionConfig) -> AttentionConfig:
        s.require("queries, keys and values are not clipped here", clip_qkv=None)
        return replace(common, qk_norm=AllHeads(norm=RMSNormConfig(epsilon=float(s["rms_norm_eps"]))))
