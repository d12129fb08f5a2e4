"""OLMo 2: norms of what layers add, not of what they read; of queries and keys over all heads. arXiv:2501.00656."""

from dataclasses import replace

from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.joins import OutputNorm
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.qk_norms import AllHeads
from jaxtrain.surgery.huggingface.llama_like import DEFAULTS, LlamaLike
from jaxtrain.surgery.huggingface.settings import Settings


class Olmo2(LlamaLike):
    model_type = "olmo2"
    architecture = "Olmo2ForCausalLM"
    defaults = DEFAULTS | {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5}
    norms = {"mixer_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}

    def attention(self, s: Settings, common: AttentionConfig) -> AttentionConfig:
        return replace(common, qk_norm=AllHeads(norm=RMSNormConfig(epsilon=float(s["rms_norm_eps"]))))

    def block(self, s: Settings, common: BlockConfig) -> BlockConfig:
        return replace(common, join=OutputNorm())
