"""Random weights."""

from dataclasses import dataclass
from typing import ClassVar

from jax.sharding import Mesh
from jaxtyping import Array, Key

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.shapes import ModelState
from jaxtrain.train.initial.base import Initial
from jaxtrain.train.state import create_model


@dataclass(frozen=True, kw_only=True, slots=True)
class Random(Initial):
    """Random weights, by the seed of the run."""

    paper: ClassVar[str] = "common practice"

    def __call__(self, config: DecoderConfig, mesh: Mesh, key: Key[Array, ""]) -> ModelState:
        return create_model(config, mesh, key)
