"""A teacher of several models."""

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.models.members import stacked_axes
from jaxtrain.models.teacher import Teacher
from jaxtrain.models.trees import together
from jaxtrain.nn.remat import NoRemat
from jaxtrain.nn.trainable import Everything
from jaxtrain.shapes import ModelState, ParamTree
from jaxtrain.sharding import shardings


@dataclass(frozen=True, kw_only=True, slots=True)
class Ensemble(Teacher):
    """Several teachers of one architecture: the softmax of the mean of their logits.

    That is the geometric mean of their probabilities (`models/members.py`). They may have been trained in different
    ways.
    """

    teachers: tuple[Teacher, ...]
    paper: ClassVar[str] = "arXiv:1503.02531"

    def __post_init__(self):
        if len(self.teachers) < 2:
            raise ValueError(f"teachers={self.teachers!r}: an ensemble has two or more; for one, take that itself")
        for index, teacher in enumerate(self.teachers):
            if teacher.members != 1:
                raise ValueError(f"teachers[{index}]={teacher!r}: must be one model; name its models here")
        if self.model is None:
            return
        first, *others = (_of_predictions(teacher.model) for teacher in self.teachers)
        for index, other in enumerate(others, 1):
            for name in (field.name for field in fields(first) if other != first):
                mine, own = getattr(first, name), getattr(other, name)
                if mine != own:
                    raise ValueError(
                        f"teachers[{index}]: its model.{name} is {own!r}, and that of teachers[0] {mine!r}: "
                        "models of one ensemble have one architecture; train them alike"
                    )

    @property
    def model(self) -> DecoderConfig | None:
        """The architecture that all have; None where that of one is not known."""
        models = [teacher.model for teacher in self.teachers]
        return None if None in models else models[0]

    @property
    def members(self) -> int:
        return len(self.teachers)

    def arrays(self, mesh: Mesh) -> ModelState:
        """Return the stacked arrays. Beside them, those of one model are in memory at a time."""
        assert self.model is not None, "a student of it could not be built"
        _, shapes, axes = abstract_model(self.model)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.members, *x.shape), x.dtype), shapes)
        layout = together(shardings(stacked_axes(axes), shapes, mesh))

        def put(stack, member, index):
            return jax.tree.map(lambda into, leaf: into.at[index].set(leaf), stack, member)

        with jax.set_mesh(mesh):
            put = jax.jit(put, donate_argnums=0, out_shardings=layout)
            stack = jax.jit(lambda: _zeros(together(shapes)), out_shardings=layout)()
            for index, teacher in enumerate(self.teachers):
                stack = put(stack, together(teacher.arrays(mesh)), index)
        return ModelState({}, {"members": stack})


def _zeros(shapes: ParamTree) -> ParamTree:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def _of_predictions(model: DecoderConfig) -> DecoderConfig:
    """Return an architecture without what changes training alone."""
    return replace(model, dropout=0.0, remat=NoRemat(), trainable=Everything())
