"""Rotary embeddings in a config.json: in the form of transformers 4 (rope_scaling) or 5 (rope_parameters)."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtrain.nn.positions import InterleavedRotary, PartialRotary, Rotary, RotaryEmbedding
from jaxtrain.nn.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
)
from jaxtrain.surgery.huggingface.settings import Settings, checked, short
from jaxtrain.surgery.huggingface.windows import FULL, SLIDING

LENGTH = "original_max_position_embeddings"


class RopeType(NamedTuple):
    """The settings of a rope_type: those it needs, and those it may have."""

    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


ROPE_TYPES: dict[str, RopeType] = {
    "default": RopeType(),
    "linear": RopeType(("factor",)),
    "dynamic": RopeType(("factor",)),
    "yarn": RopeType(
        ("factor", LENGTH), ("beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim")
    ),
    "longrope": RopeType(("short_factor", "long_factor", LENGTH), ("factor", "attention_factor")),
    "llama3": RopeType(("factor", "low_freq_factor", "high_freq_factor", LENGTH)),
}


class RopeKeys(NamedTuple):
    """The names of the settings of a family's rotary embeddings, and what they are where config.json has none.

    Without `fraction` all of a head is rotated. With `interleaved` neighbours are a pair. `layer_type` is the key into
    rope_parameters, for families whose layers differ; `scaled` tells whether rope_scaling is of these layers. `types`
    are the rope_types that the family has.
    """

    theta: str = "rope_theta"
    default_theta: float = 10_000.0
    fraction: str | None = None
    default_fraction: float = 1.0
    interleaved: bool = False
    layer_type: str | None = None
    scaled: bool = True
    types: tuple[str, ...] = tuple(ROPE_TYPES)


def read_rope(s: Settings, keys: RopeKeys) -> RotaryEmbedding:
    """Return the rotary embeddings of a config.json.

    Raises:
        ValueError: a rope_type is unknown, lacks a number or has one too many, or two places are at odds.
    """
    fraction_key = keys.fraction or "partial_rotary_factor"
    beside = {"rope_theta": s.given(keys.theta), "partial_rotary_factor": s.given(fraction_key)}
    places: dict[str, Mapping[str, Any]] = {"config.json": beside}
    scalings = {}
    length = s.given(LENGTH)
    for key in ("rope_scaling", "rope_parameters") if keys.scaled else ("rope_parameters",):
        given = _object(key, s.given(key))
        if keys.layer_type and key == "rope_parameters" and given:
            if given.keys() - {FULL, SLIDING}:
                raise ValueError(f"{key}={short(given)} must have settings of {FULL} and {SLIDING}, and nothing else")
            given = _object(f"{key}.{keys.layer_type}", given.get(keys.layer_type))
        if given:
            places[key], scalings[key] = given, _scaling(key, given, length, s, keys.types)
    fractions = _said("partial_rotary_factor", places)
    if not keys.fraction and set(fractions.values()) - {1.0}:
        raise ValueError(f"{fraction_key} is not supported: all of a head is rotated")
    thetas = _said("rope_theta", places)
    if "rope_parameters" in scalings and not thetas:  # transformers writes its rope_theta even if it is the default
        raise ValueError("rope_parameters has no rope_theta: it must say it")
    theta, scaling = float(_agreed("rope_theta", thetas, keys.default_theta)), _agreed("rope", scalings, None)
    fraction = float(_agreed(fraction_key, fractions, keys.default_fraction))
    if keys.interleaved:
        return InterleavedRotary(theta=theta, scaling=scaling, fraction=fraction)
    if fraction == 1.0:
        return Rotary(theta=theta, scaling=scaling)
    return PartialRotary(theta=theta, scaling=scaling, fraction=fraction)


def write_rope(rope: RotaryEmbedding | None, keys: RopeKeys) -> dict[str, Any]:
    """Return the rotary settings in the form of transformers 4, which transformers 5 also reads.

    Raises:
        ValueError: the scaling is of a class that no family has.
    """
    rope = rope or Rotary()  # for None this is read back as another decoder, so the export is refused
    written: dict[str, Any] = {keys.theta: rope.theta}
    if keys.fraction:
        written[keys.fraction] = rope.fraction if isinstance(rope, PartialRotary | InterleavedRotary) else 1.0
    if keys.scaled:
        written["rope_scaling"] = _write_scaling(rope.scaling)
    return written


def mscale_of(s: Settings) -> float:
    """Return what multiplies queries and keys of families that put YaRN's factor into the scale of the scores."""
    for key in ("rope_parameters", "rope_scaling"):
        rope = _object(key, s.given(key))
        if rope.get("mscale_all_dim") and rope.get("rope_type", rope.get("type")) == "yarn":
            return _mscale(float(_of(rope, "factor")), float(_of(rope, "mscale_all_dim")))
    return 1.0


def write_mscale(scaling: YarnScaling, scale: float | None, usual: float) -> dict[str, float]:
    """Return the setting by which `mscale_of` gives the scale of the scores, as short as rounding lets it be."""
    if scale is None or scaling.factor == 1:
        return {}
    exact = (math.sqrt(scale / usual) - 1) / (0.1 * math.log(scaling.factor))
    for digits in (4, 8, 12):
        short = round(exact, digits)
        if usual * _mscale(scaling.factor, short) * _mscale(scaling.factor, short) == scale:
            return {"mscale_all_dim": short}
    return {"mscale_all_dim": exact}


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(max(factor, 1)) + 1


def _write_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    match scaling:
        case None:
            return None
        case LinearScaling(factor=factor):
            return {"rope_type": "linear", "factor": factor}
        case DynamicScaling(factor=factor):
            return {"rope_type": "dynamic", "factor": factor}
        case YarnScaling():
            return {
                "rope_type": "yarn",
                "factor": scaling.factor,
                LENGTH: scaling.original_length,
                "beta_fast": scaling.fast,
                "beta_slow": scaling.slow,
                "truncate": scaling.truncate,
                **({} if scaling.attention_factor is None else {"attention_factor": scaling.attention_factor}),
            }
        case LongRopeScaling():
            return {
                "rope_type": "longrope",
                "short_factor": list(scaling.short),
                "long_factor": list(scaling.long),
                LENGTH: scaling.original_length,
                "attention_factor": scaling.attention_factor,
            }
        case Llama3Scaling(factor=factor, low=low, high=high, original_length=length):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                LENGTH: length,
            }
    raise ValueError(f"it has the rotary scaling {type(scaling).__name__}, which no family has")


def _scaling(key: str, rope: Mapping[str, Any], beside: Any, s: Settings, types: tuple[str, ...]) -> RopeScaling | None:
    """Return the scaling of an object of rotary settings. `beside` is the original length beside it, or None."""
    kind = _rope_type(key, rope, types)
    needed, optional = ROPE_TYPES[kind]
    if LENGTH in needed and beside is not None:
        if rope.get(LENGTH) not in (None, beside):
            raise ValueError(
                f"{key}: {LENGTH}={rope[LENGTH]!r} is at odds with {beside!r} beside it: leave one of them"
            )
        rope = {**rope, LENGTH: beside}
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *needed, *optional}
    for name, value in rope.items():
        if name not in known and value is not None:
            raise ValueError(f"{key}: {name}={short(value)} is not understood for rope_type={kind!r}: take it out")
    numbers = {name: _of(rope, name) for name in needed}
    numbers |= {name: None if rope.get(name) is None else checked(name, rope[name]) for name in optional}
    match kind:
        case "linear":
            return LinearScaling(factor=float(numbers["factor"]))
        case "dynamic":
            return DynamicScaling(factor=float(numbers["factor"]), original_length=s["max_position_embeddings"])
        case "yarn":
            return _yarn(numbers)
        case "longrope":
            return _long_rope(numbers, s["max_position_embeddings"])
        case "llama3":
            return Llama3Scaling(
                factor=float(numbers["factor"]),
                low=float(numbers["low_freq_factor"]),
                high=float(numbers["high_freq_factor"]),
                original_length=numbers[LENGTH],
            )
    return None


def _yarn(numbers: Mapping[str, Any]) -> YarnScaling:
    factor, attention_factor = float(numbers["factor"]), numbers["attention_factor"]
    if attention_factor is None and numbers["mscale"] and numbers["mscale_all_dim"]:
        attention_factor = _mscale(factor, numbers["mscale"]) / _mscale(factor, numbers["mscale_all_dim"])
    return YarnScaling(
        factor=factor,
        original_length=numbers[LENGTH],
        fast=float(numbers["beta_fast"] or 32.0),
        slow=float(numbers["beta_slow"] or 1.0),
        truncate=numbers["truncate"] is not False,
        attention_factor=None if attention_factor is None else float(attention_factor),
    )


def _long_rope(numbers: Mapping[str, Any], max_length: int) -> LongRopeScaling:
    length, attention_factor = numbers[LENGTH], numbers["attention_factor"]
    if attention_factor is None:
        factor = max_length / max(length, 1) if numbers["factor"] is None else numbers["factor"]
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(length)) if factor > 1 and length > 1 else 1.0
    return LongRopeScaling(
        short=_factors("short_factor", numbers),
        long=_factors("long_factor", numbers),
        original_length=length,
        attention_factor=float(attention_factor),
    )


def _factors(key: str, numbers: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(float(checked("factor", number)) for number in numbers[key])


def _object(key: str, given: Any) -> Mapping[str, Any]:
    if not isinstance(given, dict | None):
        raise ValueError(f"{key}={short(given)} must be an object or null")
    return given or {}


def _said(key: str, places: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a setting in each place that has it."""
    return {place: _of(rope, key) for place, rope in places.items() if rope.get(key) is not None}


def _agreed(what: str, said: Mapping[str, Any], default: Any) -> Any:
    """Return the value that all places have for a setting, or the default where no place has one."""
    first, *others = said.values() or (default,)
    if any(other != first for other in others):
        spoken = " and ".join(f"{value} in {place}" for place, value in said.items())
        raise ValueError(f"the settings of {what} are at odds, {spoken}: leave one of them")
    return first


def _rope_type(key: str, rope: Mapping[str, Any], types: tuple[str, ...]) -> str:
    said = [rope[name] for name in ("rope_type", "type") if rope.get(name) is not None]
    if not said:
        raise ValueError(f"{key}={short(rope)} has no rope_type: say which, one of {', '.join(types)}")
    kind = said[0]
    if any(other != kind for other in said):
        raise ValueError(f"{key}: rope_type={kind!r} is at odds with type={said[1]!r}: leave one of them")
    if not isinstance(kind, str) or kind not in types:
        raise ValueError(
            f"{key}: rope_type={short(kind)} is not one of {', '.join(types)}: only models whose positions are "
            "scaled in one of these ways can be imported"
        )
    return kind


def _of(rope: Mapping[str, Any], key: str) -> Any:
    if key not in rope:
        raise ValueError(f"the rope settings have no {key!r}, which their rope_type needs")
    return checked(key, rope[key])
