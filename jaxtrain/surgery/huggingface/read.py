"""Import: a Hugging Face folder as a DecoderConfig and its parameters, read one leaf at a time."""

import re
from collections import defaultdict
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxtrain.mesh import shardings
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.shapes import ParamTree
from jaxtrain.surgery.huggingface.families import check_unquantized, family_named
from jaxtrain.surgery.huggingface.family import Family
from jaxtrain.surgery.huggingface.layout import Path as LeafPath
from jaxtrain.surgery.huggingface.layout import Tensor
from jaxtrain.surgery.huggingface.leaf import Leaf, Source
from jaxtrain.surgery.huggingface.tensor_files import DTYPES, Stored, read_json, stored_tensors

SHOWN = 5  # names in an error


def open_folder(folder: str | Path) -> tuple[DecoderConfig, ParamTree]:
    """Return the decoder of a Hugging Face folder and the tree of its parameters, each a Leaf, reading no weights yet.

    Raises:
        ValueError: the family is unknown, a setting is not supported, files or tensors are missing, left over or of
            the wrong shape or dtype.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} has no config.json: give a folder in the form of Hugging Face transformers")
    settings = read_json(folder / "config.json")
    check_unquantized(settings)
    family = family_named(settings.get("model_type"))
    config = family.read(settings)
    expected = list(family.tensors(config))
    stored = _named_as_expected(stored_tensors(folder), family, config)
    _check(folder, expected, stored)
    return config, _tree(expected, stored)


def import_folder(folder: str | Path, mesh: Mesh | None = None) -> tuple[DecoderConfig, ParamTree]:
    """Return the decoder of a Hugging Face folder and its parameters, in the dtypes of the files.

    With a mesh each device, on each host, is given its own shards, and only those are read. Host memory beside the
    parameters: one leaf and one tensor.
    """
    config, leaves = open_folder(folder)
    if mesh is None:
        return config, jax.tree.map(lambda leaf: jax.device_put(leaf.read()).block_until_ready(), leaves)
    _, _, axes = abstract_model(config)

    def place(leaf: Leaf, sharding: jax.sharding.Sharding) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, sharding, leaf.read, dtype=leaf.dtype).block_until_ready()

    return config, jax.tree.map(place, leaves, shardings(axes, leaves, mesh))


def _named_as_expected(stored: dict[str, Stored], family: Family, config: DecoderConfig) -> dict[str, Stored]:
    """Add the prefix that files of a bare base model lack, and drop buffers and a copied tied head."""
    if not any(name.startswith(family.prefix) for name in stored):
        stored = {name if name.startswith("lm_head.") else family.prefix + name: at for name, at in stored.items()}
    ignored = re.compile(family.ignored + (r"|lm_head\.weight" if config.tied_embeddings else ""))
    return {name: at for name, at in stored.items() if not ignored.fullmatch(name)}


def _check(folder: Path, expected: list[Tensor], stored: dict[str, Stored]) -> None:
    names = {tensor.name for tensor in expected}
    if names - stored.keys():
        raise ValueError(f"{folder} lacks tensors that config.json asks for: {_some(names - stored.keys())}")
    if stored.keys() - names:
        raise ValueError(f"{folder} has tensors that config.json does not ask for: {_some(stored.keys() - names)}")
    for tensor in expected:
        found = stored[tensor.name]
        if found.shape != tensor.shape:
            raise ValueError(
                f"{found.file}: {tensor.name} has shape {found.shape}, config.json asks for {tensor.shape}: the two "
                f"are not of the same model"
            )
        if found.dtype not in DTYPES:
            raise ValueError(f"{found.file}: {tensor.name} is {found.dtype}, convert reads {', '.join(DTYPES)}")


def _some(names: set[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more


def _tree(expected: list[Tensor], stored: dict[str, Stored]) -> ParamTree:
    sources: dict[LeafPath, list[Source]] = defaultdict(list)  # repeats come in their order
    stacked = {}
    for tensor in expected:
        for part in tensor.parts:
            sources[part.path].append(Source(stored[tensor.name], part.view))
            stacked[part.path] = tensor.repeat is not None
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
        node[last] = Leaf(of_path, stacked=stacked[path])
    return tree
