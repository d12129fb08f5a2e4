"""Qwen 2 and 2.5: biases of queries, keys and values. Qwen 3: their norms instead. arXiv:2407.10671, 2505.09388."""

from dataclasses import replace
from typing import Any

from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.qk_norms import PerHead
from jaxtrain.surgery.huggingface.llama_like import DEFAULTS, LlamaLike
from jaxtrain.surgery.huggingface.settings import Settings
from jaxtrain.surgery.huggingface.windows import Windows, optional_windows, write_layer_types

QWEN = DEFAULTS | {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


class Qwen(LlamaLike):
    """A family whose upper layers may have windows."""

    def windows(self, s: Settings) -> Windows:
        return optional_windows(s, [i >= s["max_window_layers"] for i in range(s["num_hidden_layers"])])

    def write_windows(self, windows: Windows) -> dict[str, Any]:
        first = next((i for i, window in enumerate(windows) if window), len(windows))
        return {**write_layer_types(windows), "use_sliding_window": any(windows), "max_window_layers": first}


class Qwen2(Qwen):
    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    biases = (None, None)  # not a setting
    defaults = QWEN

    def attention(self, s: Settings, common: AttentionConfig) -> AttentionConfig:
        s.require("models of another kind have it", use_mrope=False)
        return replace(common, biases=("query", "key", "value"))


class Qwen3(Qwen):
    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    defaults = QWEN | {"head_dim": 128}

    def attention(self, s: Settings, common: AttentionConfig) -> AttentionConfig:
        return replace(common, qk_norm=PerHead(norm=RMSNormConfig(epsilon=float(s["rms_norm_eps"]))))
