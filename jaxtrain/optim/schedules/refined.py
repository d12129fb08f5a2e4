"""A schedule refined by the gradient norms of an earlier run. Defazio et al. (2023), arXiv:2310.07831.

The norms are those of the file `path`, the metrics.jsonl of a run: the run that uses them keeps a copy. The median is
taken over `window` of all steps (refinement.py), and the curve is stretched to the steps of this run. It warms up by
itself. Deviation: for Adam the paper takes L1 norms to the power of -1. The metrics have L2 norms, so `power=1` is a
stand-in.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import optax

from jaxtrain.optim.refinement import refined_rates
from jaxtrain.optim.schedules.base import Schedule
from jaxtrain.paths import FilePath
from jaxtrain.ranges import check_not_negative, check_positive, check_share

MOST_POINTS = 1000  # of the curve, which is compiled into the step


@dataclass(frozen=True, kw_only=True, slots=True)
class Refined(Schedule):
    """In proportion to w times the sum of later w, for w = norm^-power of the gradients in a metrics.jsonl."""

    path: FilePath
    peak: float
    warmup_steps: int = 0
    power: float = 2.0
    window: float = 0.1
    paper: ClassVar[str] = "arXiv:2310.07831"

    def __post_init__(self):
        check_not_negative(self, "peak", "warmup_steps")
        check_positive(self, "power")
        check_share(self, "window")

    def after_warmup(self, steps: int) -> optax.Schedule:
        norms = read_norms(Path(self.path))
        if len(norms) < 2:
            raise ValueError(f"path={self.path!r}: it has no gradient norms of two steps or more; name a metrics.jsonl")
        window = 2 * int(self.window * len(norms) / 2) + 1
        rates = refined_rates(norms, window=window, power=self.power)
        places = np.linspace(0, 1, min(len(rates), MOST_POINTS))
        points = jnp.asarray(self.peak * np.interp(places, np.linspace(0, 1, len(rates)), rates), jnp.float32)
        return lambda count: jnp.interp(count / max(steps, 1), jnp.asarray(places, jnp.float32), points)


def read_norms(path: Path) -> np.ndarray:
    """Return the finite gradient norms above 0 of a metrics.jsonl, by its steps.

    Raises:
        ValueError: a line of the file is no JSON object.
    """
    try:
        records = [json.loads(line) for line in path.read_text().splitlines()]
        found = [record["gradient_norm"] for record in records if record.get("gradient_norm") is not None]
    except (ValueError, AttributeError, UnicodeDecodeError):
        raise ValueError(f"path={str(path)!r}: it is not the metrics.jsonl of a run") from None
    return np.array([norm for norm in found if norm > 0], float)
