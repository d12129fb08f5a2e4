"""Import of a Hugging Face folder as a DecoderConfig and its parameters, which are read one leaf at a time."""

import dataclasses
import logging
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.models.trees import together
from jaxtrain.shapes import ParamTree
from jaxtrain.sharding import shardings
from jaxtrain.surgery.huggingface.families import check_unquantized, family_named
from jaxtrain.surgery.huggingface.family import Family
from jaxtrain.surgery.huggingface.files import read_json, reading
from jaxtrain.surgery.huggingface.layout import Path as LeafPath
from jaxtrain.surgery.huggingface.layout import Tensor
from jaxtrain.surgery.huggingface.leaf import Leaf, Source
from jaxtrain.surgery.huggingface.settings import short
from jaxtrain.surgery.huggingface.tensor_files import DTYPES, Stored, same_values, some, stored_tensors
from jaxtrain.surgery.huggingface.token_ids import check_tokens
from jaxtrain.surgery.lazy import Box

log = logging.getLogger(__name__)
EXPERTS = re.compile(r"expert|moe|(in|out)put_linear")  # in the names of their tensors


def open_folder(folder: str | Path) -> tuple[DecoderConfig, ParamTree]:
    """Return the decoder of a Hugging Face folder and the tree of its arrays. Each is a Leaf, which is read later.

    Parameters and buffers are in one tree (`models/trees.py: apart`).

    Raises:
        ValueError: the family is unknown; a setting is not understood; files or tensors are missing, unexpected, of the
            wrong shape or dtype, or contradictory.
    """
    folder = Path(folder)
    file = folder / "config.json"
    if not file.exists():
        raise ValueError(f"{folder} has no config.json: give a folder in the form of Hugging Face transformers")
    settings = read_json(file)
    with reading(file):
        check_unquantized(settings)
        family = family_named(settings.get("model_type"))
    check_tokens(folder)
    stored = _renamed(folder, stored_tensors(folder, family.passed_over(settings)), family)
    stored = _with_prefix(stored, family)
    with reading(file):
        _check_layers(family, settings, stored)
        config = family.read(settings)
    config, stored = _tied_if_equal(folder, family, config, stored)
    stored = _without_copies(folder, stored, family)
    with reading(file):
        expected = list(family.tensors(config))
    _check(folder, family, expected, stored)
    return config, _tree(expected, stored)


def import_folder(folder: str | Path, mesh: Mesh | None = None) -> tuple[DecoderConfig, ParamTree]:
    """Return the decoder of a Hugging Face folder and its arrays, in the dtypes of the files.

    With a mesh, each device on each host gets its own shards, and each host reads only these. Beside the parameters,
    host memory has one leaf and one tensor.
    """
    config, leaves = open_folder(folder)
    if mesh is None:
        return config, jax.tree.map(lambda leaf: jax.device_put(leaf.read()).block_until_ready(), leaves)
    axes = together(abstract_model(config).axes)

    def place(leaf: Leaf, sharding: jax.sharding.Sharding) -> jax.Array:
        def read(box: Box | None) -> np.ndarray:
            return leaf.read(box or ())

        return jax.make_array_from_callback(leaf.shape, sharding, read, dtype=leaf.dtype).block_until_ready()

    return config, jax.tree.map(place, leaves, shardings(axes, leaves, mesh))


def _renamed(folder: Path, stored: dict[str, Stored], family: Family) -> dict[str, Stored]:
    """Return the tensors by the names that the family has for them."""
    renamed: dict[str, Stored] = {}
    for old, at in stored.items():
        name = old
        for pattern, replacement in family.renamed.items():
            name = re.sub(pattern, replacement, name)
        if name in renamed:
            raise ValueError(f"{folder}: two tensors are {name}, one of them under an older name: remove one")
        renamed[name] = at
    return renamed


def _without_copies(folder: Path, stored: dict[str, Stored], family: Family) -> dict[str, Stored]:
    """Return the tensors without copies of others. Raises ValueError for a copy with other values."""
    left = dict(stored)
    for copy, name in family.copies.items():
        if copy in stored:
            if not same_values(stored[copy], stored.get(name, stored[copy])):
                raise ValueError(f"{folder}: {copy} and {name} are one parameter, and have different values")
            left[name] = left.pop(copy)
    return left


def _with_prefix(stored: dict[str, Stored], family: Family) -> dict[str, Stored]:
    """Return the tensors with the family's prefix in their names, which files of a model without a head lack."""
    if any(name.startswith(family.prefix) for name in stored):
        return stored
    return {name if name == family.head else family.prefix + name: at for name, at in stored.items()}


def _check_layers(family: Family, settings: dict[str, Any], stored: dict[str, Stored]) -> None:
    """Raise ValueError for more layers than tensors. Called before anything is allocated for each layer."""
    layers = settings.get(family.layers)
    if type(layers) is int and layers > len(stored):
        raise ValueError(f"{family.layers}={short(layers)} are more layers than the files have tensors, {len(stored)}")


def _tied_if_equal(
    folder: Path, family: Family, config: DecoderConfig, stored: dict[str, Stored]
) -> tuple[DecoderConfig, dict[str, Stored]]:
    """Return the decoder and its tensors without a tied head's copy of the embeddings.

    If the head's values differ from the embeddings, it is kept and the decoder is not tied, as in transformers 5.
    """
    head, table = stored.get(family.head), stored.get(family.table)
    if not config.head.tied or head is None or table is None:
        return config, stored
    if same_values(head, table):
        return config, {name: at for name, at in stored.items() if name != family.head}
    log.warning("%s ties the head to the embeddings, but %s has other values: it is kept", folder, family.head)
    return dataclasses.replace(config, head=config.head.untied()), stored


def _check(folder: Path, family: Family, expected: list[Tensor], stored: dict[str, Stored]) -> None:
    names = {tensor.name for tensor in expected}
    ours, theirs = (
        {name for name in left if EXPERTS.search(name)} for left in (names - stored.keys(), stored.keys() - names)
    )
    if ours and theirs:
        raise ValueError(
            f"{folder} has its experts in a layout that is not known: {some(theirs)}, where {family.model_type} has "
            f"{some(ours)}; load it with transformers and save it with save_pretrained"
        )
    if names - stored.keys():
        raise ValueError(f"{folder} lacks tensors that config.json asks for: {some(names - stored.keys())}")
    if stored.keys() - names:
        raise ValueError(f"{folder} has tensors that config.json does not ask for: {some(stored.keys() - names)}")
    for tensor in expected:
        found = stored[tensor.name]
        if found.shape != tensor.shape:
            raise ValueError(
                f"{found.file}: {tensor.name} has shape {found.shape}, config.json asks for {tensor.shape}: the two "
                f"are not of the same model"
            )
        if found.dtype not in DTYPES:
            raise ValueError(f"{found.file}: {tensor.name} is {found.dtype}, convert reads {', '.join(DTYPES)}")


def _tree(expected: list[Tensor], stored: dict[str, Stored]) -> ParamTree:
    sources: dict[LeafPath, list[Source]] = defaultdict(list)  # by repeat, and by expert within it
    stacked, experts = {}, {}
    for tensor in expected:
        for part in tensor.parts:
            sources[part.path].append(Source(stored[tensor.name], part.view))
            stacked[part.path] = tensor.repeat is not None
            experts[part.path] = None if part.expert is None else part.expert + 1  # the last of a layer counts them
    tree: ParamTree = {}
    for path, of_path in sources.items():
        kinds = {source.stored.dtype for source in of_path}
        if len(kinds) > 1:
            where = ".".join(map(str, path))
            raise ValueError(
                f"the layers of {where} are of several dtypes, {', '.join(sorted(kinds))}: save them as one"
            )
        *parents, last = path
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = Leaf(of_path, stacked=stacked[path], experts=experts[path])
    return tree
