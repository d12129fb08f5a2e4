"""The settings of a config.json, and checks that each is of its type, is understood, and contradicts no other."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxtrain.nn.rope import LinearScaling, Llama3Scaling, RopeConfig, RopeScaling
from jaxtrain.surgery.huggingface.harmless import HARMLESS, NEUTRAL

ACTIVATIONS = {  # theirs: ours
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
LARGEST = 2**31 - 1  # largest size: positions and indices are int32
LARGEST_FLOAT = float(np.finfo(np.float32).max)

type Kind = tuple[type, ...]  # the Python types of a kind of setting
SIZE: Kind = (int,)
NUMBER: Kind = (int, float)
FLAG: Kind = (bool,)
TEXT: Kind = (str,)
LIST: Kind = (list,)
NULL: Kind = (type(None),)
SPOKEN = {SIZE: "a whole number", NUMBER: "a number", FLAG: "true or false", TEXT: "a text", LIST: "a list"}
KINDS: dict[str, tuple[Kind, ...]] = {  # of the settings that families read
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
    "partial_rotary_factor": (NUMBER, NULL),
    "factor": (NUMBER,),
    "low_freq_factor": (NUMBER,),
    "high_freq_factor": (NUMBER,),
    "original_max_position_embeddings": (SIZE,),
}
ROPE_NUMBERS: dict[str, tuple[str, ...]] = {  # of each rope_type
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


class Settings:
    """A config.json, and a family's defaults: transformers leaves out the settings that equal their default."""

    def __init__(self, given: Mapping[str, Any], defaults: Mapping[str, Any]):
        self._given = given
        self._values = {**defaults, **given}
        self._understood: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            raise ValueError(f"config.json has no {key!r}: it must say it")
        self._understood.add(key)
        return _checked(key, self._values[key])

    def or_else(self, key: str, value: int) -> int:
        """Return a setting, or `value` where it is null."""
        return value if self[key] is None else self[key]

    def require(self, reason: str, **neutral: Any) -> None:
        """Raise ValueError for an unsupported setting that has another value than its neutral one."""
        for key, value in neutral.items():
            self._understood.add(key)
            if self._values.get(key, value) not in (value, None):
                raise ValueError(f"{key}={self._values[key]!r} is not supported, only {value!r}: {reason}")

    def require_same(self, key: str, other: str) -> None:
        """Raise ValueError where `key`, a second name of the setting `other`, has another value."""
        self._understood.add(key)
        if self._given.get(key) not in (None, self[other]):
            raise ValueError(f"{key}={self._given[key]!r} is at odds with {other}={self[other]!r}: leave one of them")

    def check_understood(self) -> None:
        """Raise ValueError for a setting that has not been read and is not known to be harmless."""
        for key, value in self._given.items():
            if value is None or key in self._understood or key in HARMLESS:
                continue
            if key not in NEUTRAL:
                raise ValueError(
                    f"{key}={short(value)} is not understood, and may change what the model computes: "
                    f"take it out of config.json if it does not"
                )
            if value != NEUTRAL[key]:
                raise ValueError(f"{key}={short(value)} is not supported, only {NEUTRAL[key]!r}")

    def activation(self, key: str) -> str:
        if self[key] not in ACTIVATIONS:
            raise ValueError(f"{key}={self[key]!r} is not one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[self[key]]

    def rope(self) -> RopeConfig:
        """Return the rotary settings of transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters)."""
        places = {"config.json": {key: self._given.get(key) for key in ("rope_theta", "partial_rotary_factor")}}
        scalings = {}
        for key in ("rope_scaling", "rope_parameters"):
            given = self._given.get(key) or {}
            if not isinstance(given, dict):
                raise ValueError(f"{key}={short(given)} must be an object or null")
            if given:
                places[key], scalings[key] = given, _scaling(key, given)
        self._understood |= places.keys() | {"rope_theta", "partial_rotary_factor"}
        parts = [_checked("partial_rotary_factor", rope.get("partial_rotary_factor")) for rope in places.values()]
        if set(parts) - {None, 1.0}:
            raise ValueError("partial_rotary_factor is not supported: all of a head is rotated")
        thetas = {
            place: _of(rope, "rope_theta") for place, rope in places.items() if rope.get("rope_theta") is not None
        }
        if "rope_parameters" in scalings and not thetas:  # transformers writes its rope_theta even if it is the default
            raise ValueError("rope_parameters has no rope_theta: it must say it")
        return RopeConfig(theta=float(_agreed("rope_theta", thetas, 10_000.0)), scaling=_agreed("rope", scalings, None))


def _agreed(what: str, said: Mapping[str, Any], default: Any) -> Any:
    """Return the value that all places have for a setting, or the default where no place has one."""
    first, *others = said.values() or (default,)
    if any(other != first for other in others):
        spoken = " and ".join(f"{value} in {place}" for place, value in said.items())
        raise ValueError(f"the settings of {what} are at odds, {spoken}: leave one of them")
    return first


def _scaling(key: str, rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = _rope_type(key, rope)
    needed = {name: _of(rope, name) for name in ROPE_NUMBERS[kind]}
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *needed}
    for name, value in rope.items():
        if name not in known and value is not None:
            raise ValueError(f"{key}: {name}={short(value)} is not understood for rope_type={kind!r}: take it out")
    match kind:
        case "linear":
            return LinearScaling(factor=float(needed["factor"]))
        case "llama3":
            return Llama3Scaling(
                factor=float(needed["factor"]),
                low=float(needed["low_freq_factor"]),
                high=float(needed["high_freq_factor"]),
                original_length=needed["original_max_position_embeddings"],
            )
    return None


def _rope_type(key: str, rope: Mapping[str, Any]) -> str:
    said = [rope[name] for name in ("rope_type", "type") if rope.get(name) is not None]
    if not said:
        raise ValueError(f"{key}={short(rope)} has no rope_type: say which, one of {', '.join(ROPE_NUMBERS)}")
    kind = said[0]
    if any(other != kind for other in said):
        raise ValueError(f"{key}: rope_type={kind!r} is at odds with type={said[1]!r}: leave one of them")
    if not isinstance(kind, str) or kind not in ROPE_NUMBERS:
        raise ValueError(f"{key}: rope_type={short(kind)} is not one of {', '.join(ROPE_NUMBERS)}")
    return kind


def _of(rope: Mapping[str, Any], key: str) -> Any:
    if key not in rope:
        raise ValueError(f"the rope settings have no {key!r}, which their rope_type needs")
    return _checked(key, rope[key])


def _checked(key: str, value: Any) -> Any:
    """Return a setting. Raises ValueError unless it is exactly of its kind: true is no number, and 96.0 no size."""
    kinds = KINDS[key]
    if not any(type(value) in types for types in kinds):
        spoken = " or ".join(SPOKEN.get(types, "null") for types in kinds)
        raise ValueError(f"{key}={short(value)} must be {spoken}")
    if SIZE in kinds and value is not None and abs(value) > LARGEST:
        raise ValueError(f"{key}={short(value)} must be at most {LARGEST}")
    if NUMBER in kinds and value is not None and not abs(value) <= LARGEST_FLOAT:
        raise ValueError(f"{key}={short(value)} must be a number that a float32 can hold")
    return value


def short(value: Any) -> str:
    """Return a value as text for an error, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
