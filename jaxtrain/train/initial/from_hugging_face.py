"""The weights of a Hugging Face folder."""

from dataclasses import dataclass
from typing import ClassVar

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Key

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.models.trees import apart
from jaxtrain.paths import Folder
from jaxtrain.shapes import ModelState
from jaxtrain.surgery.huggingface import import_folder
from jaxtrain.surgery.linears import has_plain_linears, plain
from jaxtrain.train.initial.base import Initial
from jaxtrain.train.initial.same_model import check_same_architecture, check_same_function
from jaxtrain.train.initial.taken_over import taken_over


@dataclass(frozen=True, kw_only=True, slots=True)
class FromHuggingFace(Initial):
    """The weights of the Hugging Face folder `path`, as `jaxtrain convert` reads them, for the same architecture.

    Linears may be of other kinds, and only some parameters trained, as with `FromRun`. `model` is the folder's model.
    It is read from there where a configuration file leaves it out, and so is the model of the run. The tokenizer is
    not: `data.tokenizer` names its file. Keys that change what the weights compute must be those of the folder, but for
    those that `changed` names. Every device gets its own part of the weights; host memory holds one tensor.
    """

    path: Folder
    model: DecoderConfig | None = None
    changed: tuple[str, ...] = ()
    paper: ClassVar[str] = "common practice"

    def check(self, config: DecoderConfig) -> None:
        if self.model is not None:
            self._check_serves(plain(self.model), config)

    def __call__(self, config: DecoderConfig, mesh: Mesh, key: Key[Array, ""]) -> ModelState:
        source, arrays = import_folder(self.path, mesh)
        if self.model is not None and plain(self.model) != source:
            raise ValueError(f"path={self.path!r}: its config.json is not the one any more that `model` was read from")
        self._check_serves(source, config)
        shapes = abstract_model(source).shapes
        model = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), apart(arrays, shapes), shapes)
        trees = zip(abstract_model(config).shapes, shapes, strict=True)
        same = all(flatten_dict(ours).keys() == flatten_dict(theirs).keys() for ours, theirs in trees)
        return model if same and has_plain_linears(config) else taken_over(model, source, config, mesh, key)

    def _check_serves(self, source: DecoderConfig, config: DecoderConfig) -> None:
        check_same_architecture(source, config, path=self.path, what="a model")
        check_same_function(source, config, path=self.path, owner="the folder", changed=self.changed)
