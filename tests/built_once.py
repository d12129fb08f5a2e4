"""Runs of one process share their programs: the steps of equal configurations are traced and compiled once."""

import contextlib
import functools
from collections.abc import Iterator

import pytest

from jaxtrain.train import loop, program
from jaxtrain.train.program import Program, Recipe
from jaxtrain.train.step import make_evaluation_step

_build = Recipe.program


@functools.lru_cache(maxsize=64)
def _program(recipe: Recipe, span, mesh, make_train_step) -> Program:
    return _build(recipe, span, mesh)


_evaluation_step = functools.lru_cache(maxsize=64)(make_evaluation_step)


@contextlib.contextmanager
def built_once() -> Iterator[None]:
    """Keep programs, also from file to file; a step that a test has put in place of ours is another one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recipe, "program", lambda self, *of: _program(self, *of, program.make_train_step))
        patch.setattr(loop, "make_evaluation_step", _evaluation_step)
        yield
