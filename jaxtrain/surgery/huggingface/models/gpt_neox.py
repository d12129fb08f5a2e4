"""GPT-NeoX and Pythia: parallel layers, part of each head rotated. arXiv:2204.06745, arXiv:2304.01373."""

from dataclasses import replace
from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.joins import Parallel, PreNorm
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.norms.layer_norm import LayerNormConfig
from jaxtrain.surgery.huggingface.layout import Axes, Tensor, torch_heads, torch_linear
from jaxtrain.surgery.huggingface.llama_like import DEFAULTS, LlamaLike
from jaxtrain.surgery.huggingface.rope import RopeKeys
from jaxtrain.surgery.huggingface.settings import Settings


class GPTNeoX(LlamaLike):
    """GPT-NeoX. One tensor has the query, key and value of each head side by side."""

    model_type = "gpt_neox"
    architecture = "GPTNeoXForCausalLM"
    epsilon = "layer_norm_eps"
    derived = ("head_dim", "num_key_value_heads")
    rope_keys = RopeKeys(theta="rotary_emb_base", fraction="rotary_pct", default_fraction=0.25)
    defaults = DEFAULTS | {
        "attention_bias": True,
        "hidden_act": "gelu",
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": True,
        "hidden_dropout": 0.0,
        "rotary_emb_base": 10_000,
        "rotary_pct": 0.25,
    }
    prefix = "gpt_neox."
    ignored = r".*\.attention\.(masked_)?bias|.*\.rotary_emb\.inv_freq"  # causal masks, frequencies
    table = "gpt_neox.embed_in.weight"
    stack = "gpt_neox.layers."
    last_norm = "gpt_neox.final_layer_norm"
    head = "embed_out.weight"
    renamed = {r"lm_head\.weight": "embed_out.weight"}

    def norm(self, epsilon: float) -> LayerNormConfig:
        return LayerNormConfig(epsilon=epsilon)

    def mlp(self, s: Settings, hidden: int, activation: str, bias: bool) -> MLPConfig:
        return MLPConfig(hidden=hidden, activation=activation, bias=True)  # not a setting

    def block(self, s: Settings, common: BlockConfig) -> BlockConfig:
        return replace(common, join=Parallel() if s["use_parallel_residual"] else PreNorm())

    def whole(self, s: Settings, common: DecoderConfig) -> DecoderConfig:
        s.pass_over("classifier_dropout")  # of another head
        s.require_same("rope_theta", "rotary_emb_base")
        s.require_same("partial_rotary_factor", "rotary_pct")
        return replace(common, dropout=float(s["hidden_dropout"]))

    def write_more(self, config: DecoderConfig) -> dict[str, Any]:
        return {"use_parallel_residual": isinstance(config.pattern[0].join, Parallel), "hidden_dropout": config.dropout}

    def attention_tensors(self, mixer: AttentionConfig, D: Axes, H: Axes, J: Axes) -> list[Tensor]:
        paths = (("mixer", name) for name in ("query", "key", "value"))
        return [
            *torch_heads("attention.query_key_value", D, H, *paths, bias="query" in mixer.biases),
            *torch_linear("attention.dense", H, D, "mixer", "output", bias="output" in mixer.biases),
        ]

    def mlp_tensors(self, bias: bool, D: Axes, F: Axes) -> list[Tensor]:
        return [
            *torch_linear("mlp.dense_h_to_4h", D, F, "mlp", "up", bias=bias),
            *torch_linear("mlp.dense_4h_to_h", F, D, "mlp", "down", bias=bias),
        ]
