"""Phi-3 and Phi-4-mini: queries, keys and values in one tensor, gate and up in another. arXiv:2404.14219."""

from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.positions import RotaryEmbedding
from jaxtrain.nn.rope import LongRopeScaling
from jaxtrain.surgery.huggingface.family import attention_of
from jaxtrain.surgery.huggingface.layout import Axes, Tensor, torch_linear, torch_linears
from jaxtrain.surgery.huggingface.llama_like import DEFAULTS, LlamaLike
from jaxtrain.surgery.huggingface.rope import LENGTH, RopeKeys
from jaxtrain.surgery.huggingface.settings import Settings
from jaxtrain.surgery.huggingface.windows import Windows, same_windows


class Phi3(LlamaLike):
    model_type = "phi3"
    architecture = "Phi3ForCausalLM"
    biases = (None, None)
    rope_keys = RopeKeys(fraction="partial_rotary_factor", types=("default", "longrope"))
    defaults = DEFAULTS | {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "sliding_window": None}

    def windows(self, s: Settings) -> Windows:
        return same_windows(s, s["sliding_window"])

    def write_windows(self, windows: Windows) -> dict[str, Any]:
        return {"sliding_window": windows[0]}

    def whole(self, s: Settings, common: DecoderConfig) -> DecoderConfig:
        s.require("dropout of the residual stream is a setting of ours: --set it", resid_pdrop=0.0)
        own = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
        s.require("the code of another model", auto_map=own)  # the published files' copy of transformers' code
        return common

    def write_more(self, config: DecoderConfig) -> dict[str, Any]:
        rope = attention_of(config.pattern[0]).positions
        scaling = rope.scaling if isinstance(rope, RotaryEmbedding) else None
        return {LENGTH: scaling.original_length if isinstance(scaling, LongRopeScaling) else config.max_length}

    def attention_tensors(self, mixer: AttentionConfig, D: Axes, H: Axes, J: Axes) -> list[Tensor]:
        query, key, value = (("mixer", name) for name in ("query", "key", "value"))
        return [
            torch_linears("self_attn.qkv_proj", D, (H, query), (J, key), (J, value)),
            *torch_linear("self_attn.o_proj", H, D, "mixer", "output"),
        ]

    def mlp_tensors(self, bias: bool, D: Axes, F: Axes) -> list[Tensor]:
        return [
            torch_linears("mlp.gate_up_proj", D, (F, ("mlp", "gate")), (F, ("mlp", "up"))),
            *torch_linear("mlp.down_proj", F, D, "mlp", "down"),
        ]
