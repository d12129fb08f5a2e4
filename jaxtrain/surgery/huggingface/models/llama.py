"""Llama. Touvron et al. (2023), arXiv:2302.13971; The Llama 3 Herd of Models (2024), arXiv:2407.21783."""

from jaxtrain.surgery.huggingface.llama_like import DEFAULTS, LlamaLike


class Llama(LlamaLike):
    model_type = "llama"
    architecture = "LlamaForCausalLM"
    biases = ("attention_bias", "mlp_bias")
    defaults = DEFAULTS | {"max_position_embeddings": 2048}
