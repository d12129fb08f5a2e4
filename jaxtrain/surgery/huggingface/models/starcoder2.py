"""StarCoder2: LayerNorm, plain feed-forward layers, a bias in every linear. Lozhkov et al. (2024), arXiv:2402.19173."""

from dataclasses import replace
from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.norms.layer_norm import LayerNormConfig
from jaxtrain.surgery.huggingface.layout import Axes, Tensor, torch_linear
from jaxtrain.surgery.huggingface.llama_like import DEFAULTS, LlamaLike
from jaxtrain.surgery.huggingface.settings import Settings
from jaxtrain.surgery.huggingface.windows import Windows, same_windows


class StarCoder2(LlamaLike):
    """StarCoder2. The dropout of the residual stream is kept; our attention has no dropout of its weights."""

    model_type = "starcoder2"
    architecture = "Starcoder2ForCausalLM"
    epsilon = "norm_epsilon"
    biases = ("use_bias", "use_bias")
    defaults = DEFAULTS | {
        "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096,
        "norm_epsilon": 1e-5,
        "sliding_window": None,
        "residual_dropout": 0.0,
        "use_bias": True,
        "tie_word_embeddings": True,
    }

    def windows(self, s: Settings) -> Windows:
        return same_windows(s, s["sliding_window"])

    def write_windows(self, windows: Windows) -> dict[str, Any]:
        return {"sliding_window": windows[0]}

    def norm(self, epsilon: float) -> LayerNormConfig:
        return LayerNormConfig(epsilon=epsilon)

    def mlp(self, s: Settings, hidden: int, activation: str, bias: bool) -> MLPConfig:
        return MLPConfig(hidden=hidden, activation=activation, bias=bias)

    def whole(self, s: Settings, common: DecoderConfig) -> DecoderConfig:
        s.pass_over("attention_dropout", "embedding_dropout")  # training only
        s.pass_over("activation_function", "layer_norm_epsilon")  # which no program reads
        s.pass_over("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32")  # how the same is computed
        s.require("models of another kind have it", mlp_type="default", norm_type="layer_norm", scale_attn_weights=True)
        return replace(common, dropout=float(s["residual_dropout"]))

    def write_more(self, config: DecoderConfig) -> dict[str, Any]:
        return {"residual_dropout": config.dropout, "embedding_dropout": config.dropout}

    def mlp_tensors(self, bias: bool, D: Axes, F: Axes) -> list[Tensor]:
        return [
            *torch_linear("mlp.c_fc", D, F, "mlp", "up", bias=bias),
            *torch_linear("mlp.c_proj", F, D, "mlp", "down", bias=bias),
        ]
