"""A choice of trained parameters by the names of those that are not."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from flax import nnx

from jaxtrain.nn.trainable.base import Trainable, check_patterns


@dataclass(frozen=True, kw_only=True, slots=True)
class Except(Trainable):
    """All parameters but those whose name matches one of the patterns, such as `embedding.*`."""

    names: tuple[str, ...]
    paper: ClassVar[str] = "common practice"

    def selects(self, path: str, parameter: nnx.Param) -> bool:
        return not any(fnmatchcase(path, pattern) for pattern in self.names)

    def check(self, paths: list[str]) -> None:
        check_patterns(self.names, paths)
