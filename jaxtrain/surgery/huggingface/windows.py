"""The attention windows of layers in a config.json."""

from collections.abc import Sequence
from typing import Any

from jaxtrain.nn.masks import Causal, Mask, SlidingWindow
from jaxtrain.surgery.huggingface.settings import Settings

Windows = tuple[int | None, ...]  # one for each layer
SLIDING, FULL = "sliding_attention", "full_attention"


def same_windows(s: Settings, window: int | None) -> Windows:
    """Return the same window for all layers. Raises ValueError if `layer_types` has something else."""
    kind = SLIDING if window else FULL
    types = s["layer_types"]
    if types is not None and types != [kind] * s["num_hidden_layers"]:
        raise ValueError(f"layer_types: this model_type has {kind} in all of its layers; make all of them so")
    return (window,) * s["num_hidden_layers"]


def listed_windows(s: Settings, default: Sequence[bool], key: str = "sliding_window") -> Windows:
    """Return the windows by `layer_types`, or without it by the family's rule `default`. `key` has their length."""
    types = s["layer_types"]
    if types is None:
        types = [SLIDING if slides else FULL for slides in default]
    if len(types) != len(default) or not all(kind in (SLIDING, FULL) for kind in types):
        raise ValueError(
            f"layer_types={types!r} must give sliding_attention or full_attention for each of the {len(default)} layers"
        )
    window = s[key]
    if window is None and SLIDING in types:
        raise ValueError(f"{key}=None is at odds with layers of sliding_attention: say how long it is")
    return tuple(window if kind == SLIDING else None for kind in types)


def optional_windows(s: Settings, default: Sequence[bool]) -> Windows:
    """Return the windows of a family that also has a switch for all of them, `use_sliding_window`."""
    used = s["use_sliding_window"]
    windows = listed_windows(s, [used and slides for slides in default])
    if any(windows) and not used:
        raise ValueError("layer_types has sliding_attention, at odds with use_sliding_window=False: change one of them")
    return windows


def patterned_windows(s: Settings) -> Windows:
    """Return the windows of a family in which every so many layers one has none, by `sliding_window_pattern`."""
    s.pass_over("_sliding_window_pattern")  # a copy of it that transformers 4 saved beside layer_types
    period = s["sliding_window_pattern"]
    if period < 1:
        raise ValueError(f"sliding_window_pattern={period} must be at least 1: it counts layers")
    return listed_windows(s, [(i + 1) % period != 0 for i in range(s["num_hidden_layers"])])


def mask_of(window: int | None) -> Mask:
    return Causal() if window is None else SlidingWindow(window=window)


def write_layer_types(windows: Windows) -> dict[str, Any]:
    return {
        "sliding_window": next(filter(None, windows), None),
        "layer_types": [SLIDING if window else FULL for window in windows],
    }
