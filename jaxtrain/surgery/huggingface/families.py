"""The families that `jaxtrain convert` knows, and the choice of a family for a config.json or a DecoderConfig."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.remat import NoRemat
from jaxtrain.surgery.huggingface.family import Family, shortest_pattern
from jaxtrain.surgery.huggingface.gpt2 import GPT2
from jaxtrain.surgery.huggingface.llama import GEMMA2, LLAMA, MISTRAL, QWEN3

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA, MISTRAL, QWEN3, GEMMA2, GPT2())}


def family_named(model_type: object) -> Family:
    """Return a family by its name in config.json. Raises ValueError, with the known names, for any other."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"model_type={model_type!r} is not a family that convert knows: it knows {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def family_of(config: DecoderConfig) -> Family:
    """Return the first family that expresses a decoder. Raises ValueError, with a difference to each, if none does."""
    _check_attention(config)
    reasons = []
    for family in FAMILIES.values():
        difference = first_difference(config, family)
        if difference is None:
            return family
        reasons.append(f"{family.model_type}: {difference}")
    raise ValueError(f"no family that convert knows expresses this decoder ({'; '.join(reasons)})")


def check_expressible(config: DecoderConfig, family: Family) -> None:
    """Raise ValueError where a family does not express a decoder."""
    _check_attention(config)
    difference = first_difference(config, family)
    if difference is not None:
        raise ValueError(f"the family {family.model_type} does not express this decoder: {difference}")


def _check_attention(config: DecoderConfig) -> None:
    for index, block in enumerate(config.pattern):
        if not isinstance(block.mixer, AttentionConfig):
            raise ValueError(
                f"pattern[{index}].mixer is {type(block.mixer).__name__}: the families that convert knows "
                f"({', '.join(FAMILIES)}) have attention in all blocks, so this decoder cannot be exported"
            )


def first_difference(config: DecoderConfig, family: Family) -> str | None:
    """Return where a decoder differs from itself written as the family's config.json and read again, or None."""
    ours = _essence(config)
    try:
        theirs = _essence(family.read(family.write(config)))
    except ValueError as error:
        return str(error)
    return next(_differences(ours, theirs, ""), None)


def _essence(config: DecoderConfig) -> DecoderConfig:
    """Return the configuration with fixed values for settings of training and computation, and the shortest pattern."""
    pattern, repeats = shortest_pattern(config.pattern * config.repeats)
    return dataclasses.replace(
        config,
        pattern=pattern,
        repeats=repeats,
        dropout=0.0,
        compute_dtype="float32",
        remat=NoRemat(),
        scan=True,
    )


def _differences(ours: Any, theirs: Any, path: str) -> Iterator[str]:
    if dataclasses.is_dataclass(ours) and type(ours) is type(theirs):
        for field in dataclasses.fields(ours):
            dot = "." if path else ""
            yield from _differences(getattr(ours, field.name), getattr(theirs, field.name), f"{path}{dot}{field.name}")
    elif isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from _differences(one, other, f"{path}[{i}]")
    elif ours != theirs:
        yield f"it has {path}={ours!r}, the family {theirs!r}"


def check_unquantized(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for a config.json of quantized weights."""
    if settings.get("quantization_config"):
        raise ValueError("there is a quantization_config: convert reads unquantized weights; dequantize them first")
