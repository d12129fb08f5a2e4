"""What a family of published models is to the converter, and how config.json settings are read."""

import abc
from collections.abc import Iterator, Mapping
from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.rope import LinearScaling, Llama3Scaling, RopeConfig
from jaxtrain.surgery.huggingface.layout import Tensor

ACTIVATIONS = {  # theirs: ours
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


SIZE, NUMBER, FLAG, TEXT, LIST, NULL = (int,), (int, float), (bool,), (str,), (list,), (type(None),)
SPOKEN = {SIZE: "a whole number", NUMBER: "a number", FLAG: "true or false", TEXT: "a text", LIST: "a list"}
KINDS = {  # of the settings that a family reads
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"), (SIZE,)),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "max_window_layers"), (SIZE,)),
    **dict.fromkeys(("n_embd", "n_head", "n_layer", "n_positions"), (SIZE,)),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "sliding_window", "n_inner"), (SIZE, NULL)),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_epsilon", "resid_pdrop", "query_pre_attn_scalar"), (NUMBER,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (NUMBER, NULL)),
    **dict.fromkeys(("attention_bias", "tie_word_embeddings", "use_sliding_window", "scale_attn_weights"), (FLAG,)),
    **dict.fromkeys(("hidden_act", "hidden_activation", "activation_function"), (TEXT,)),
    "layer_types": (LIST, NULL),
    "rope_theta": (NUMBER,),
    "factor": (NUMBER,),
    "low_freq_factor": (NUMBER,),
    "high_freq_factor": (NUMBER,),
    "original_max_position_embeddings": (SIZE,),
}


class Family(abc.ABC):
    """Both directions of a family's configuration, and its tensors.

    `prefix` begins the names of all tensors but the head's; some published files leave it out. `ignored` is a regular
    expression for buffers that old versions saved among the weights.
    """

    model_type: str
    architecture: str
    prefix: str
    ignored: str

    @abc.abstractmethod
    def read(self, settings: Mapping[str, Any]) -> DecoderConfig:
        """Return the decoder of a config.json. Raises ValueError for settings that the decoder does not have."""

    @abc.abstractmethod
    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """Return the config.json of a decoder of this family; of another, something that reads as another decoder."""

    @abc.abstractmethod
    def tensors(self, config: DecoderConfig) -> Iterator[Tensor]:
        """Yield every tensor, in the order of the model."""


class Settings:
    """A config.json over a family's defaults: transformers leaves out what equals its default."""

    def __init__(self, given: Mapping[str, Any], defaults: Mapping[str, Any]):
        self._values = {**defaults, **given}

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            raise ValueError(f"config.json has no {key!r}: it must say it")
        return _checked(key, self._values[key])

    def require(self, reason: str, **neutral: Any) -> None:
        """Raise ValueError where a setting that we do not have is on."""
        for key, value in neutral.items():
            if self._values.get(key, value) not in (value, None):
                raise ValueError(f"config.json: {key}={self._values[key]!r} is not supported, only {value!r}: {reason}")

    def activation(self, key: str) -> str:
        if self[key] not in ACTIVATIONS:
            raise ValueError(f"config.json: {key}={self[key]!r} is not one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[self[key]]

    def rope(self) -> RopeConfig:
        """Read the rotary settings of transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters)."""
        rope = {"rope_theta": self._values.get("rope_theta", 10_000.0)}
        for key in ("rope_scaling", "rope_parameters"):
            given = self._values.get(key) or {}
            if not isinstance(given, dict):
                raise ValueError(f"config.json: {key}={given!r} must be an object or null")
            rope |= given
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError("config.json: partial_rotary_factor is not supported: all of a head is rotated")
        return RopeConfig(theta=float(_of(rope, "rope_theta")), scaling=_scaling(rope))


def _scaling(rope: Mapping[str, Any]) -> LinearScaling | Llama3Scaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    match kind:
        case "default":
            return None
        case "linear":
            return LinearScaling(factor=float(_of(rope, "factor")))
        case "llama3":
            return Llama3Scaling(
                factor=float(_of(rope, "factor")),
                low=float(_of(rope, "low_freq_factor")),
                high=float(_of(rope, "high_freq_factor")),
                original_length=_of(rope, "original_max_position_embeddings"),
            )
    raise ValueError(f"config.json: rope_type={kind!r} is not one of default, linear, llama3")


def _of(rope: Mapping[str, Any], key: str) -> Any:
    if key not in rope:
        raise ValueError(f"config.json: the rope settings have no {key!r}, which their rope_type needs")
    return _checked(key, rope[key])


def _checked(key: str, value: Any) -> Any:
    """Return a setting that is of its kind. Exactly: true is no number, and 96.0 no size."""
    kinds = KINDS[key]
    if not any(type(value) in types for types in kinds):
        spoken = " or ".join(SPOKEN.get(types, "null") for types in kinds)
        raise ValueError(f"config.json: {key}={value!r} must be {spoken}")
    return value


def write_rope(rope: RopeConfig | None) -> dict[str, Any]:
    """Return the settings in the form of transformers 4, which 5 reads too."""
    rope = rope or RopeConfig()  # no rotary positions: reads back as another decoder, which is how it is refused
    match rope.scaling:
        case None:
            scaling = None
        case LinearScaling(factor=factor):
            scaling = {"rope_type": "linear", "factor": factor}
        case Llama3Scaling(factor=factor, low=low, high=high, original_length=length):
            scaling = {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": length,
            }
    return {"rope_theta": rope.theta, "rope_scaling": scaling}


def write_activation(activation: str, *, tanh: str) -> str:
    """Return a family's name for an activation; the tanh form of GELU has two."""
    return tanh if activation == "gelu_tanh" else activation


def shortest_pattern(blocks: tuple[BlockConfig, ...]) -> tuple[tuple[BlockConfig, ...], int]:
    """Return the shortest pattern that, repeated, gives the layers, and how often."""
    for length in range(1, len(blocks) + 1):
        repeats, rest = divmod(len(blocks), length)
        if not rest and blocks[:length] * repeats == blocks:
            return blocks[:length], repeats
    raise ValueError("config.json: num_hidden_layers must be at least 1")
