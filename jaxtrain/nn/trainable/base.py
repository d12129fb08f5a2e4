"""The base class of choices of trained parameters, and the freezing of all others."""

import difflib
from abc import abstractmethod
from fnmatch import fnmatchcase
from typing import ClassVar

from flax import nnx

from jaxtrain.nn.param import Frozen
from jaxtrain.technique import Technique


class Trainable(Technique):
    """A frozen dataclass that says which parameters of a model are trained.

    The others become frozen weights. They have no gradient and no moments, and checkpoints write them once.
    """

    __slots__ = ()
    may_be_all: ClassVar[bool] = False  # otherwise it is an error to select all

    @abstractmethod
    def selects(self, path: str, parameter: nnx.Param) -> bool:
        """Tell whether to train a parameter. `path` is such as `stacks.blocks.blocks.0.mixer.query.kernel`."""

    def check(self, paths: list[str]) -> None:
        """Raise ValueError where the choice names a parameter that a model with these does not have."""


def check_patterns(patterns: tuple[str, ...], paths: list[str]) -> None:
    """Raise ValueError for a pattern that matches none of the paths."""
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            near = difflib.get_close_matches(pattern, paths, n=1, cutoff=0.0)
            raise ValueError(f"names: {pattern!r} matches no parameter of the model, such as {near[0]}")


def freeze_all(model: nnx.Module) -> None:
    """Make frozen variables of everything that a model has."""
    for _, module in list(nnx.iter_modules(model)):
        for name, value in list(vars(module).items()):
            if isinstance(value, nnx.Variable):
                setattr(module, name, Frozen(value[...], axes=value.axes))


def freeze_others(model: nnx.Module, trainable: Trainable) -> None:
    """Make frozen variables of all parameters that are not selected.

    Raises:
        ValueError: none is selected, or all are by a choice that should leave some.
    """
    chosen: list[tuple] = []
    others: list[tuple] = []
    for at, module in nnx.iter_modules(model):
        for name, value in vars(module).items():
            if isinstance(value, nnx.Param):
                path = ".".join(map(str, (*at, name)))
                (chosen if trainable.selects(path, value) else others).append((path, module, name, value))
    trainable.check([path for path, *_ in (*chosen, *others)])
    if not chosen:
        raise ValueError(
            f"trainable={trainable!r} selects none of the model's {len(others)} parameters, such as {others[-1][0]}"
        )
    if not others and not trainable.may_be_all:
        raise ValueError(
            f"trainable={trainable!r} selects all of the model's {len(chosen)} parameters: use Everything(), "
            "or select fewer"
        )
    for _, module, name, value in others:
        setattr(module, name, Frozen(value[...], axes=value.axes))
