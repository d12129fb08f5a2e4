"""The base of all that a configuration chooses by its type: optimizers, mixers, hooks, sources and so on.

Every kind has an abstract base class, a subclass of `Technique`, in the `base.py` of its folder. A key of a
configuration takes any final subclass of its base, wherever that is defined. There is no registry.
"""

import inspect
from abc import ABC
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar


class Technique(ABC):  # noqa: B024  # each kind has its own abstract methods
    """A frozen dataclass that a configuration key takes by its base class. `paper` names its source.

    `neutral` names the fields of a layer that change how it is computed or trained, and not what it computes from the
    same weights. Weights of another run may come with other values of these.
    """

    __slots__ = ()
    paper: ClassVar[str] = ""
    neutral: ClassVar[tuple[str, ...]] = ()
    if TYPE_CHECKING:  # all subclasses are dataclasses, so `dataclasses.replace` takes them
        __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls):
        super().__init_subclass__()
        kinds = [f"{base.__module__}.{base.__name__}" for base in cls.__mro__ if Technique in base.__bases__]
        if len(kinds) > 1:
            raise TypeError(f"{cls.__name__} has {len(kinds)} bases, {' and '.join(kinds)}: write a class for each")
        for name in inspect.get_annotations(cls):  # a dataclass would take the property for the default of its field
            if name not in vars(cls) and isinstance(getattr(cls, name, None), property):
                raise TypeError(f"{cls.__name__}.{name}: give the field a default, its base has a property of the name")


def lacking(cls: type) -> Iterator[tuple[str, type]]:
    """Yield every method and field that a base of the class declares and the class lacks, with that base."""
    given = {name for base in cls.__mro__ for name in vars(base)} - getattr(cls, "__abstractmethods__", frozenset())
    given |= {field.name for field in fields(cls)} if is_dataclass(cls) else set()
    for base in cls.__mro__:
        if issubclass(base, Technique):
            abstract = [name for name, value in vars(base).items() if getattr(value, "__isabstractmethod__", False)]
            for name in [*inspect.get_annotations(base), *abstract]:
                if name not in given:
                    yield name, base
