"""Whether weights fit a model: by their shapes, and by the keys that shapes do not show.

A rope base, an activation or a mask has no array. The same weights with another one compute something else, and no
error tells.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import fields, is_dataclass

from flax.traverse_util import flatten_dict

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.moe.balances.base import choosing
from jaxtrain.surgery.linears import plain
from jaxtrain.technique import Technique


def check_same_architecture(source: DecoderConfig, config: DecoderConfig, *, path: str, what: str) -> None:
    """Raise ValueError where the two differ in more than linears. `what` is at `path`, such as "a run"."""
    ours, theirs = (flatten_dict(abstract_model(plain(of)).shapes.params) for of in (config, source))
    for name in {**ours, **theirs}:
        one, other = (of[name].shape if name in of else None for of in (ours, theirs))
        if one != other:
            raise ValueError(
                f"{path=}: it is {what} of another architecture, whose {'.'.join(map(str, name))} is "
                f"{other} where the model has {one}; give the model that {what.removeprefix('a ')}'s architecture"
            )


def check_same_function(
    source: DecoderConfig, config: DecoderConfig, *, path: str, owner: str, changed: Collection[str]
) -> None:
    """Raise ValueError where the weights of one compute something else in the other, but for the keys in `changed`.

    A key of `changed` stands for all keys below it. The weights are those of `owner` at `path`, such as "the run".
    """
    meant = [_spelled(key) for key in changed]
    found = [
        (key, ours, theirs)
        for key, ours, theirs in differences(plain(config), plain(source), "model")
        if not any(f"{_spelled(key)}.".startswith(f"{name}.") for name in meant)
    ]
    if found:
        values = "; ".join(f"{key}={ours!r}, {owner}'s {theirs!r}" for key, ours, theirs in found)
        keys = ", ".join(f"{key!r}" for key in [*changed, *(key for key, _, _ in found)])
        raise ValueError(
            f"{path=}: in this model the weights of {owner} would compute something else: {values}; take {owner}'s "
            f"values, or say that the change is meant, initial.changed=({keys},)"
        )


def differences(ours: object, theirs: object, key: str) -> Iterator[tuple[str, object, object]]:
    """Yield each key, with both values, in which two configurations make another function of the same weights."""
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        ours, theirs = choosing(ours), choosing(theirs)
    if isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(*pair, f"{key}[{index}]")
    elif is_dataclass(ours) and not isinstance(ours, type) and type(ours) is type(theirs):
        neutral = ours.neutral if isinstance(ours, Technique | DecoderConfig) else ()
        for field in fields(ours):
            if field.name not in neutral:
                yield from differences(getattr(ours, field.name), getattr(theirs, field.name), f"{key}.{field.name}")
    elif ours != theirs:
        yield key, ours, theirs


def _spelled(key: str) -> str:
    """Return a key with its indices as names: `pattern.0` for `pattern[0]`."""
    return re.sub(r"\[(\d+)\]", r".\1", key)
