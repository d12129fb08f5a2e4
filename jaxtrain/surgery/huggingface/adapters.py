"""Adapters in the files of the package peft: `adapter_config.json` and `adapter_model.safetensors`.

Each linear of a family has `lora_A [rank, inputs]`, `lora_B [outputs, rank]` and, for DoRA, `lora_magnitude_vector`,
under `base_model.model.` and its name in the family. Left out: ranks that differ between linears, adapters of
embeddings, and biases or whole modules that are trained beside adapters.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jaxtrain.axes import EXPERTS
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.linear.adapted import Adapted
from jaxtrain.nn.linear.base import LinearConfig
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.linear.dora import DoRA
from jaxtrain.nn.linear.lora import LoRA
from jaxtrain.nn.linear.some import Some
from jaxtrain.nn.mixers.base import MixerConfig
from jaxtrain.nn.param import merge
from jaxtrain.nn.trainable import Adapters
from jaxtrain.shapes import ParamTree
from jaxtrain.surgery.huggingface.families import check_expressible, family_named, family_of
from jaxtrain.surgery.huggingface.files import read_json
from jaxtrain.surgery.huggingface.layout import Part
from jaxtrain.surgery.huggingface.layout import Path as LeafPath
from jaxtrain.surgery.linears import plain

type AdapterConfig = LoRA | DoRA
CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
NEUTRAL: dict[str, tuple[Any, ...]] = {  # settings that would change the result, and the values at which they do not
    "bias": ("none", None),
    "fan_in_fan_out": (False, True, None),
    **dict.fromkeys(("modules_to_save", "layers_to_transform", "layer_replication", "target_parameters"), (None, [])),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), ({}, None)),
    **dict.fromkeys(("trainable_token_indices", "alora_invocation_tokens"), (None,)),
    **dict.fromkeys(("lora_bias", "use_qalora", "use_bdlora"), (False, None)),
}


class Site(NamedTuple):
    """A linear of a family: its name there, and ours, of which a fused one has several."""

    module: str
    parts: tuple[Part, ...]
    repeat: int | None


def export_adapter(
    config: DecoderConfig, params: ParamTree, folder: Path, *, family: str | None = None, base: str | None = None
) -> None:
    """Write the adapters of a model into a folder. `base` is the name of the model that they adapt.

    Raises:
        ValueError: no family expresses the model, it has no adapters, or more than adapters of one kind is trained.
    """
    whole = plain(config)
    chosen = family_of(whole) if family is None else family_named(family)
    check_expressible(whole, chosen)
    kinds, leaves = dict(_adapted(config)), flatten_dict(params)
    if not kinds:
        raise ValueError("--adapter: the model has no adapters; leave it out to export the model")
    if inner := [path for path in kinds if any(path[:end] in kinds for end in range(len(path)))]:
        raise ValueError(f"--adapter: {'.'.join(map(str, inner[0]))} is an adapter within another: merge them")
    if others := [path for path in leaves if not any(path[: len(of)] == of for of in kinds)]:
        raise ValueError(
            f"--adapter: {'.'.join(map(str, others[0]))} is trained too, which a file of adapters cannot hold; "
            "leave --adapter out to export the merged model"
        )
    kind, *more = {dataclasses.replace(kind, base=Dense()) for kind in kinds.values()}
    if more:
        raise ValueError(f"--adapter: adapters differ, {kind} and {more[0]}; peft's files hold one kind: merge them")
    tensors: dict[str, np.ndarray] = {}
    for site in _sites(whole, chosen):
        if len(site.parts) > 1 and any(part.path[:-1] in kinds for part in site.parts):
            raise ValueError(f"--adapter: {site.module} of {chosen.model_type} is several linears here: merge them")
        if (path := site.parts[0].path[:-1]) in kinds:
            _check_no_expert("--adapter", site, "merge them")
            tensors |= _written(site, {name: leaf for name, leaf in _leaves_of(leaves, path)})
    modules = sorted({name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in tensors})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": kind.rank,
        "lora_alpha": kind.alpha,
        "use_rslora": isinstance(kind, LoRA) and kind.root_of_rank,
        "use_dora": isinstance(kind, DoRA),
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
    }
    (folder / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors makes it for the owner alone


def read_adapter(
    folder: Path, config: DecoderConfig, base: ParamTree, *, family: str | None = None
) -> tuple[DecoderConfig, ParamTree]:
    """Return a model with the adapters of a folder around its linears, and the adapters' parameters.

    `base` has the parameters of `plain(config)`: for a head, peft writes the base's weights as well.

    Raises:
        ValueError: the adapters are of another model, or of a kind that is not supported.
    """
    kind = _kind(folder / CONFIG, read_json(folder / CONFIG))
    if any(True for _ in _adapted(config)):
        raise ValueError("--base: that run has adapters of its own; merge them first (convert it without --adapter)")
    try:
        tensors = dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    whole = plain(config)
    chosen = family_of(whole) if family is None else family_named(family)
    leaves = flatten_dict(base)
    read: dict[tuple[LeafPath, int | None], dict[str, np.ndarray]] = {}
    for site in _sites(whole, chosen):
        if not any(name.startswith(f"{PREFIX}{site.module}.lora_") for name in tensors):
            continue
        if len(site.parts) > 1:
            raise ValueError(f"{folder / WEIGHTS}: {site.module} is several linears here: merge the adapter with peft")
        _check_no_expert(folder / WEIGHTS, site, "merge the adapter with peft")
        _check_base(folder / WEIGHTS, site, tensors.pop(f"{PREFIX}{site.module}.base_layer.weight", None), leaves)
        read[site.parts[0].path[:-1], site.repeat] = _taken(folder / WEIGHTS, site, tensors)
    if tensors:
        raise ValueError(f"{folder / WEIGHTS}: {min(tensors)} is of no linear of the base: it is of another base")
    adapted = _with_adapters(config, kind, {path for path, _ in read})
    return adapted, _stacked(folder / WEIGHTS, adapted, read)


def _kind(file: Path, settings: Mapping[str, Any]) -> AdapterConfig:
    """Return the kind of the adapters."""
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{file}: peft_type={settings.get('peft_type')!r} is not supported, only 'LORA'")
    for key, neutral in NEUTRAL.items():
        if settings.get(key) not in neutral:
            raise ValueError(f"{file}: {key}={settings[key]!r} is not supported, only {neutral[0]!r}")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise ValueError(f"{file}: r={rank!r} and lora_alpha={alpha!r} must be numbers")
    root, dora = bool(settings.get("use_rslora")), bool(settings.get("use_dora"))
    if root and dora:
        raise ValueError(f"{file}: use_rslora with use_dora is not supported, only one of them")
    return DoRA(rank=rank, alpha=alpha) if dora else LoRA(rank=rank, alpha=alpha, root_of_rank=root)


def _sites(config: DecoderConfig, family) -> Iterator[Site]:
    """Yield the linears of a model with plain ones."""
    for tensor in family.tensors(config):
        if parts := tuple(part for part in tensor.parts if part.path[-1] == "kernel"):
            yield Site(tensor.name.removesuffix(".weight"), parts, tensor.repeat)


def _adapted(config: DecoderConfig) -> Iterator[tuple[LeafPath, AdapterConfig]]:
    """Yield the path of every adapted linear, and its kind."""
    model = abstract_model(config)
    for path, module in nnx.iter_modules(merge(model.graph, model.shapes)):
        if isinstance(module, Adapted):
            yield tuple(path), module.config  # type: ignore[arg-type]  # keys of ours are strings and numbers


def _leaves_of(leaves: Mapping[LeafPath, Any], path: LeafPath) -> Iterator[tuple[str | int, Any]]:
    return ((own[-1], leaf) for own, leaf in leaves.items() if own[: len(path)] == path)


def _check_no_expert(where: Path | str, site: Site, remedy: str) -> None:
    """Raise ValueError for a linear of one expert. Here an adapter of experts is one stack of adapters of them all."""
    if EXPERTS in site.parts[0].path:
        raise ValueError(f"{where}: {site.module} is that of an expert, and experts are one stack here: {remedy}")


def _written(site: Site, leaves: Mapping[Any, jax.Array]) -> dict[str, np.ndarray]:
    """Return the tensors of one linear, from its parameters `a`, `b` and `magnitude`."""
    own = {name: np.asarray(leaf if site.repeat is None else leaf[site.repeat]) for name, leaf in leaves.items()}
    rank = own["a"].shape[-1]
    name = f"{PREFIX}{site.module}.lora_"
    tensors = {
        f"{name}A.weight": np.ascontiguousarray(own["a"].reshape(-1, rank).T),
        f"{name}B.weight": np.ascontiguousarray(own["b"].reshape(rank, -1).T),
    }
    if "magnitude" in own:
        tensors[f"{name}magnitude_vector"] = own["magnitude"].reshape(-1)
    return tensors


def _taken(file: Path, site: Site, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Take the tensors of one linear out of the file's, and return them as `a`, `b` and `magnitude` in two axes."""
    own = {}
    for ours, theirs in (("a", "A.weight"), ("b", "B.weight"), ("magnitude", "magnitude_vector")):
        if (found := tensors.pop(f"{PREFIX}{site.module}.lora_{theirs}", None)) is not None:
            own[ours] = found.astype(np.float32).T
    if not {"a", "b"} <= own.keys():
        raise ValueError(f"{file}: {site.module} has only one of lora_A and lora_B")
    return own


def _check_base(file: Path, site: Site, found: np.ndarray | None, leaves: Mapping[LeafPath, jax.Array]) -> None:
    """Raise ValueError where a file has the weights of a base, and they are not those of ours."""
    part = site.parts[0]
    own = np.asarray(leaves[part.path] if site.repeat is None else leaves[part.path][site.repeat])
    if found is not None and not np.array_equal(part.view(found), own):
        raise ValueError(f"{file}: its weights of {site.module} are not the base's: it is another base's adapter")


def _with_adapters(config: DecoderConfig, kind: AdapterConfig, paths: set[LeafPath]) -> DecoderConfig:
    """Return the model with adapters around the linears at these paths."""

    def around(linear: LinearConfig, names: set, all_names: set) -> LinearConfig:
        if not names:
            return linear
        own = dataclasses.replace(kind, base=linear)
        return own if names == all_names else Some(names=tuple(sorted(names)), linear=own, others=linear)

    def with_adapters[Layer: MixerConfig | FeedForwardConfig](layer: Layer, at: LeafPath) -> Layer:
        """Return a layer with adapters around its linears, and around those of the layers that it has."""
        changed: dict[str, Any] = {}
        for name in (field.name for field in dataclasses.fields(layer)):
            value = getattr(layer, name)
            if isinstance(value, LinearConfig):
                names, of_layer = ({path[-1] for path in some if path[:-1] == at} for some in (paths, linears))
                changed[name] = around(value, names, of_layer)
            elif isinstance(value, FeedForwardConfig):
                changed[name] = with_adapters(value, (*at, name))
        return dataclasses.replace(layer, **changed)

    patterns: dict[str, tuple[BlockConfig, ...]] = {"first": ()}
    linears = {path[:-1] for path in flatten_dict(abstract_model(plain(config)).shapes.params) if path[-1] == "kernel"}
    for stack, (blocks, repeats) in config.stacks.items():
        adapted = []
        for position, block in enumerate(blocks):
            at = ("stacks", stack, "blocks", position)
            mixer, mlp = with_adapters(block.mixer, (*at, "mixer")), with_adapters(block.mlp, (*at, "mlp"))
            adapted.append(dataclasses.replace(block, mixer=mixer, mlp=mlp))
        patterns[stack] = tuple(adapted) if stack == "blocks" else tuple(adapted) * repeats
    head = config.head
    if head.linear and ("output",) in paths:
        head = dataclasses.replace(head, linear=around(head.linear, {"output"}, {"output"}))
    for path in paths:
        if path[0] != "stacks" and path != ("output",):
            raise ValueError(f"{'.'.join(map(str, path))}: this linear takes no adapter here: merge it with peft")
    return dataclasses.replace(
        config, first=patterns["first"], pattern=patterns["blocks"], head=head, trainable=Adapters()
    )


def _stacked(
    file: Path, config: DecoderConfig, read: Mapping[tuple[LeafPath, int | None], Mapping[str, np.ndarray]]
) -> ParamTree:
    """Return the parameters of all adapters in the layout of the model."""
    params = {}
    for path, like in flatten_dict(abstract_model(config).shapes.params).items():
        linear = path[: -1 if path[-1] == "magnitude" else -2]
        repeats = [None] if (linear, None) in read else list(range(config.stacks[linear[1]].repeats))
        parts = [read.get((linear, repeat), {}).get(path[-1]) for repeat in repeats]
        shape = like.shape if repeats == [None] else like.shape[1:]
        for repeat, part in zip(repeats, parts, strict=True):
            if part is None or part.size != np.prod(shape):
                found = "missing" if part is None else f"{part.shape}"
                raise ValueError(
                    f"{file}: `{path[-1]}` of {'.'.join(map(str, linear))}, layer {repeat}, is {found} where the base "
                    f"asks for {shape}: it is another base's adapter, or not all layers have one"
                )
        whole = np.stack([np.reshape(part, shape) for part in parts if part is not None])
        params[path] = whole[0] if repeats == [None] else whole
    return unflatten_dict(params)
