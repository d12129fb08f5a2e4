"""Llama. Touvron et al. (2023), arXiv:2302.13971; The Llama 3 Herd of Models (2024), arXiv:2407.21783."""

from typing import Any

from jaxtrain.surgery.huggingface.llama_like import DEFAULTS, LlamaLike
from jaxtrain.surgery.huggingface.settings import Settings
from jaxtrain.surgery.huggingface.windows import Windows, same_windows


class Llama(LlamaLike):
    model_type = "llama"
    architecture = "LlamaForCausalLM"
    biases = ("attention_bias", "mlp_bias")
    defaults = DEFAULTS | {"max_position_embeddings": 2048}

    def windows(self, s: Settings) -> Windows:
        return same_windows(s, None)

    def write_windows(self, windows: Windows) -> dict[str, Any]:
        return {}
