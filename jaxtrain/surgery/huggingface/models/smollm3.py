"""SmolLM3: every fourth layer without positions, Yang et al. (2025), arXiv:2501.18795."""

from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.positions import NoPositions, Positions
from jaxtrain.surgery.huggingface.family import attention_of
from jaxtrain.surgery.huggingface.llama_like import DEFAULTS, LlamaLike
from jaxtrain.surgery.huggingface.rope import RopeKeys, read_rope
from jaxtrain.surgery.huggingface.settings import Settings
from jaxtrain.surgery.huggingface.windows import Windows, optional_windows, write_layer_types


class SmolLM3(LlamaLike):
    """SmolLM3. `no_rope_layers` has 1 for a layer with rotary embeddings and 0 for one without."""

    model_type = "smollm3"
    architecture = "SmolLM3ForCausalLM"
    biases = ("attention_bias", "mlp_bias")
    rope_keys = RopeKeys(default_theta=2_000_000.0)
    defaults = DEFAULTS | {
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
    }

    def windows(self, s: Settings) -> Windows:
        s.pass_over("pretraining_tp", "max_window_layers")  # of the program that trained it, which no other reads
        return optional_windows(s, [not has_rope for has_rope in _have_rope(s)] if s["sliding_window"] else _none(s))

    def write_windows(self, windows: Windows) -> dict[str, Any]:
        return {**write_layer_types(windows), "use_sliding_window": any(windows)}

    def positions(self, s: Settings, layer: int, window: int | None) -> Positions:
        rope = read_rope(s, self.rope_keys)
        return rope if _have_rope(s)[layer] else NoPositions()

    def write_more(self, config: DecoderConfig) -> dict[str, Any]:
        blocks = config.blocks
        return {"no_rope_layers": [int(attention_of(block).positions != NoPositions()) for block in blocks]}


def _have_rope(s: Settings) -> list[bool]:
    count, interval, listed = s["num_hidden_layers"], s["no_rope_layer_interval"], s["no_rope_layers"]
    if listed is None:
        if interval < 1:
            raise ValueError(f"no_rope_layer_interval={interval} must be at least 1: it counts layers")
        return [(layer + 1) % interval != 0 for layer in range(count)]
    if len(listed) != count or not all(type(has) is int and has in (0, 1) for has in listed):
        raise ValueError(f"no_rope_layers={listed!r} must have 0 or 1 for each of the {count} layers")
    return [has == 1 for has in listed]


def _none(s: Settings) -> list[bool]:
    return [False] * s["num_hidden_layers"]
