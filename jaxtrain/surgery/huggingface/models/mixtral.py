"""Mixtral: Mistral with eight experts in each layer. Jiang et al. (2024), arXiv:2401.04088."""

from typing import Any

from jaxtrain.surgery.huggingface.mixture_like import MIXTURE, MixtureLike
from jaxtrain.surgery.huggingface.settings import Settings
from jaxtrain.surgery.huggingface.windows import Windows, same_windows


class Mixtral(MixtureLike):
    model_type = "mixtral"
    architecture = "MixtralForCausalLM"
    count, width = "num_local_experts", "intermediate_size"
    within, projections = "block_sparse_moe", ("w1", "w3", "w2")
    always_renormalises = True
    biases = (None, None)
    defaults = MIXTURE | {
        "sliding_window": None,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }

    def windows(self, s: Settings) -> Windows:
        return same_windows(s, s["sliding_window"])

    def write_windows(self, windows: Windows) -> dict[str, Any]:
        return {"sliding_window": windows[0]}
