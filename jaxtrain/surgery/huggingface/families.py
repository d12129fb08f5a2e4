"""The families that `jaxtrain convert` knows, and the choice of a family for a config.json or a DecoderConfig."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.models.stacks import shortest
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.mixers.latent_attention import LatentAttentionConfig
from jaxtrain.nn.moe.balances.base import choosing
from jaxtrain.nn.remat import NoRemat
from jaxtrain.surgery.huggingface.family import Family
from jaxtrain.surgery.huggingface.models.bert import BERT
from jaxtrain.surgery.huggingface.models.cohere2 import Cohere2
from jaxtrain.surgery.huggingface.models.deepseek import DeepSeekV2, DeepSeekV3
from jaxtrain.surgery.huggingface.models.gemma import Gemma, Gemma2, Gemma3
from jaxtrain.surgery.huggingface.models.glm4_moe import GLM4MoE
from jaxtrain.surgery.huggingface.models.gpt2 import GPT2
from jaxtrain.surgery.huggingface.models.gpt_neox import GPTNeoX
from jaxtrain.surgery.huggingface.models.gpt_oss import GPTOSS
from jaxtrain.surgery.huggingface.models.granite import Granite
from jaxtrain.surgery.huggingface.models.granite_moe import GraniteMoE
from jaxtrain.surgery.huggingface.models.llama import Llama
from jaxtrain.surgery.huggingface.models.mistral import Mistral
from jaxtrain.surgery.huggingface.models.mixtral import Mixtral
from jaxtrain.surgery.huggingface.models.modernbert import ModernBERT
from jaxtrain.surgery.huggingface.models.olmo2 import Olmo2
from jaxtrain.surgery.huggingface.models.olmoe import OLMoE
from jaxtrain.surgery.huggingface.models.phi3 import Phi3
from jaxtrain.surgery.huggingface.models.qwen import Qwen2, Qwen3
from jaxtrain.surgery.huggingface.models.qwen_moe import Qwen2MoE, Qwen3MoE
from jaxtrain.surgery.huggingface.models.smollm3 import SmolLM3
from jaxtrain.surgery.huggingface.models.starcoder2 import StarCoder2
from jaxtrain.technique import Technique

CLASSES: tuple[type[Family], ...] = (  # in the order of preference where several express a decoder
    *(Llama, Mistral, Qwen2, Qwen3, Gemma, Gemma2, Gemma3, GPT2, Phi3, Olmo2),
    *(SmolLM3, StarCoder2, GPTNeoX, Granite, Cohere2, BERT, ModernBERT),
    *(Mixtral, Qwen2MoE, Qwen3MoE, OLMoE, GraniteMoE, GPTOSS, DeepSeekV2, DeepSeekV3, GLM4MoE),
)
DEQUANTIZED = {  # what to do with weights that are published so
    method: f"in transformers from_pretrained(..., quantization_config={config}(dequantize=True)), save_pretrained"
    for method, config in (("mxfp4", "Mxfp4Config"), ("fp8", "FineGrainedFP8Config"))
}
SHOWN = 3  # most families in an error
FAMILIES: dict[str, Family] = {family.model_type: family() for family in CLASSES}


def family_named(model_type: object) -> Family:
    """Return a family by its name in config.json. Raises ValueError, with the known names, for any other."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"model_type={model_type!r} is not a family that convert knows: it knows {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def family_of(config: DecoderConfig) -> Family:
    """Return the first family that expresses a decoder. Raises ValueError, with the nearest ones, if none does."""
    _check_attention(config)
    found = [(family, differences(config, family)) for family in FAMILIES.values()]
    for family, differing in found:
        if not differing:
            return family
    nearest = sorted(found, key=lambda pair: len(pair[1]))[:SHOWN]
    reasons = "; ".join(f"{family.model_type}: {differing[0]}" for family, differing in nearest)
    raise ValueError(
        f"no family that convert knows expresses this decoder. The nearest are ({reasons}); --family says what another "
        "of them lacks"
    )


def check_expressible(config: DecoderConfig, family: Family) -> None:
    """Raise ValueError where a family does not express a decoder."""
    _check_attention(config)
    for difference in differences(config, family):
        raise ValueError(f"the family {family.model_type} does not express this decoder: {difference}")


def _check_attention(config: DecoderConfig) -> None:
    for key, block in config.named_blocks.items():
        if not isinstance(block.mixer, AttentionConfig | LatentAttentionConfig):
            raise ValueError(
                f"{key}.mixer is {type(block.mixer).__name__}: the families that convert knows "
                f"({', '.join(FAMILIES)}) have attention in all blocks, so this decoder cannot be exported"
            )


def differences(config: DecoderConfig, family: Family) -> list[str]:
    """Return where a decoder differs from itself written as the family's config.json and read again."""
    ours = _essence(config)
    try:
        theirs = _essence(family.read(family.write(config)))
    except ValueError as error:
        return [str(error)] * (SHOWN + 1)  # a family whose settings cannot say it is far from it
    return list(_differences(ours, theirs, ""))


def _essence(config: DecoderConfig) -> DecoderConfig:
    """Return the configuration with fixed values for settings of training and computation, and the shortest pattern."""
    pattern, repeats = shortest(config.blocks)
    return dataclasses.replace(
        config,
        first=(),
        pattern=tuple(dataclasses.replace(block, mlp=_without_training(block.mlp)) for block in pattern),
        repeats=repeats,
        dropout=0.0,
        compute_dtype="float32",
        remat=NoRemat(),
        scan=True,
    )


def _without_training(layer: FeedForwardConfig) -> FeedForwardConfig:
    """Return a layer without what a mixture has for its training alone."""
    if not isinstance(layer, MixtureConfig):
        return layer
    return dataclasses.replace(layer, balances=choosing(layer.balances))


def _differences(ours: Any, theirs: Any, path: str) -> Iterator[str]:
    if dataclasses.is_dataclass(ours) and type(ours) is type(theirs):
        neutral = ours.neutral if isinstance(ours, Technique) else ()
        for field in dataclasses.fields(ours):
            if field.name in neutral:
                continue
            dot = "." if path else ""
            yield from _differences(getattr(ours, field.name), getattr(theirs, field.name), f"{path}{dot}{field.name}")
    elif isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from _differences(one, other, f"{path}[{i}]")
    elif ours != theirs:
        yield f"it has {path}={ours!r}, the family {theirs!r}"


def check_unquantized(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for a config.json of quantized weights."""
    if quantized := settings.get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        of, remedy = (f" of {method}", DEQUANTIZED[method]) if method in DEQUANTIZED else ("", "dequantize them first")
        raise ValueError(f"there is a quantization_config{of}: convert reads unquantized weights; {remedy}")
