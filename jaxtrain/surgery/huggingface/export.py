"""Export: a DecoderConfig and its parameters as a folder that Hugging Face transformers loads."""

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.shapes import ParamTree
from jaxtrain.surgery.huggingface.families import check_expressible, family_named, family_of
from jaxtrain.surgery.huggingface.layout import Path as LeafPath
from jaxtrain.surgery.huggingface.layout import Tensor
from jaxtrain.surgery.huggingface.tensor_files import NAMES, Planned, Writer
from jaxtrain.surgery.huggingface.token_ids import GENERATION, TOKEN_IDS
from jaxtrain.surgery.lazy import LazyLeaf, Rows
from jaxtrain.surgery.whole_folder import whole_folder


def export_folder(
    config: DecoderConfig,
    params: ParamTree,
    folder: str | Path,
    *,
    family: str | None = None,
    dtype: str | None = None,
    token_ids: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a new folder, whole or not at all.

    `params` has the buffers, too, in one tree. Its leaves are arrays, or `LazyLeaf`s, which are read one at a time.
    Beside them, host memory has one tensor and the values read of its parameter.

    Args:
        family: its name in config.json; by default the first family that expresses the decoder.
        dtype: of all tensors but exact ones; by default each keeps its own dtype, and so its bits.
        token_ids: by the names in TOKEN_IDS. A missing one is written as null, because transformers replaces an absent
            key by an id of its own.
        generation: other content of generation_config.json; token ids in it take precedence over `token_ids` there.

    Raises:
        ValueError: the folder exists, or no family (or not the one named) expresses the decoder.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists: name a new folder")
    chosen = family_of(config) if family is None else family_named(family)
    check_expressible(config, chosen)
    leaves = {tuple(_key(k) for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    tensors = list(chosen.tensors(config))
    planned = {t.name: Planned(_dtype(leaves[t.parts[0].path], None if t.exact else dtype), t.shape) for t in tensors}
    main_dtype = max(planned.values(), key=lambda tensor: tensor.size_bytes).dtype
    ids = {**dict.fromkeys(TOKEN_IDS), **(token_ids or {})}
    written = {
        **ids,
        "architectures": [chosen.architecture],
        "model_type": chosen.model_type,
        "torch_dtype": main_dtype.name,
        **chosen.write(config),
    }
    with whole_folder(folder) as whole:
        _write_json(whole / "config.json", written)
        _write_json(whole / GENERATION, {**ids, **(generation or {})})
        with Writer(whole, planned, max_shard_bytes=max_shard_bytes) as writer:
            for tensor, array in _filled(tensors, leaves, planned):
                writer.write(tensor.name, array)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _filled(
    tensors: list[Tensor], leaves: Mapping[LeafPath, Any], planned: Mapping[str, Planned]
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Yield every tensor with its values. The repeats of a leaf follow one another, so that each leaf is read once."""

    def paths(tensor: Tensor) -> list[str]:
        return [".".join(map(str, part.path)) for part in tensor.parts]

    for _, group in groupby(sorted(tensors, key=paths), key=paths):
        repeats = list(group)
        read = {part.path: _rows(leaves[part.path]) for part in repeats[0].parts}
        for _, of_repeat in groupby(repeats, key=lambda tensor: tensor.repeat):
            experts = list(of_repeat)
            rows = {path: of_path(experts[0].repeat) for path, of_path in read.items()}
            for tensor in experts:
                array = np.empty(tensor.shape, planned[tensor.name].dtype)
                for part in tensor.parts:
                    own = rows[part.path]
                    if part.added:
                        array[...] = 0
                    else:
                        part.view(array)[...] = own if part.expert is None else own[part.expert]
                yield tensor, array


def _rows(leaf: Any) -> Rows:
    if isinstance(leaf, LazyLeaf):
        return leaf.rows()
    return lambda repeat: np.asarray(leaf if repeat is None else leaf[repeat])


def _dtype(leaf: Any, dtype: str | None) -> np.dtype:
    found = np.dtype(leaf.dtype) if dtype is None else jnp.dtype(dtype)
    if found not in NAMES:
        raise ValueError(f"dtype={found.name!r}: weights are written as {', '.join(d.name for d in NAMES)}")
    return found


def _key(entry: jax.tree_util.DictKey) -> str | int:
    return entry.key
