"""Checks of the numbers of a configuration. One out of range would end the run at a later step, or train nothing.

And of its names, which are parts of the names of metrics.
"""

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

LEAST_FLOAT32 = 2.0**-126  # devices flush smaller numbers to 0, and cannot divide by them
GREATEST_FLOAT32 = (2 - 2.0**-23) * 2.0**127
ABOVE_0 = "must be above 0 in float32 (1.2e-38 to 3.4e38)"
COUNTED = 1 << 31  # steps, positions and tokens are 32-bit integers on the devices


def check_integers(config: Any, where: str = "") -> None:
    """Raise ValueError where an integer anywhere in a configuration does not fit in 64 bits."""
    match config:
        case int() if abs(config) >= 1 << 63:
            raise ValueError(f"{where}={config}: no integer of a configuration may reach 2^63")
        case tuple():
            for index, item in enumerate(config):
                check_integers(item, f"{where}[{index}]")
        case _ if is_dataclass(config):
            for field in fields(config):
                check_integers(getattr(config, field.name), f"{where}.{field.name}".lstrip("."))


def check_at_least_one(config: Any, *names: str) -> None:
    """Raise ValueError where one of the fields is below 1."""
    _check(config, names, lambda value: value >= 1, "must be at least 1")


def check_decay(config: Any, *names: str) -> None:
    """Raise ValueError where one of the fields cannot be the decay of a moving average."""
    _check(config, names, lambda value: 0 <= value < 1, "must be in [0, 1)")


def check_positive(config: Any, *names: str) -> None:
    """Raise ValueError where one of the fields is not a number above 0 in float32."""
    _check(config, names, _is_positive, ABOVE_0)


def check_positive_or_none(config: Any, *names: str) -> None:
    """Raise ValueError where one of the fields is neither a number above 0 in float32 nor None."""
    _check(config, names, lambda value: value is None or _is_positive(value), f"{ABOVE_0}, or None for none")


def check_not_negative(config: Any, *names: str) -> None:
    """Raise ValueError where one of the fields is neither 0 nor a number above it in float32."""
    rule = "must not be negative, and in float32 (0, or 1.2e-38 to 3.4e38)"
    _check(config, names, lambda value: value == 0 or _is_positive(value), rule)


def check_share(config: Any, *names: str) -> None:
    """Raise ValueError where one of the fields is not a number from 0 to 1."""
    _check(config, names, lambda value: 0 <= value <= 1, "must be in [0, 1]")


def check_name(where: str, name: str) -> None:
    """Raise ValueError where a name is not of letters, digits, _ and -."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"{where}={name!r}: use letters, digits, _ and - alone")


def _is_positive(value: float) -> bool:
    return LEAST_FLOAT32 <= value <= GREATEST_FLOAT32


def _check(config: Any, names: tuple[str, ...], holds: Callable[[float], bool], rule: str) -> None:
    for name in names:
        if not holds(getattr(config, name)):  # false for NaN, too
            raise ValueError(f"{name}={getattr(config, name)}: {rule}")
