"""Mistral: a window in all layers. Jiang et al. (2023), arXiv:2310.06825."""

from typing import Any

from jaxtrain.surgery.huggingface.llama_like import DEFAULTS, LlamaLike
from jaxtrain.surgery.huggingface.settings import Settings
from jaxtrain.surgery.huggingface.windows import Windows, same_windows


class Mistral(LlamaLike):
    model_type = "mistral"
    architecture = "MistralForCausalLM"
    biases = (None, None)
    defaults = DEFAULTS | {"sliding_window": 4096, "num_key_value_heads": 8, "max_position_embeddings": 131_072}

    def windows(self, s: Settings) -> Windows:
        return same_windows(s, s["sliding_window"])

    def write_windows(self, windows: Windows) -> dict[str, Any]:
        return {"sliding_window": windows[0]}
