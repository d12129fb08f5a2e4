"""What is done to the scores of attention before their softmax, where it is not the usual scale alone."""

from dataclasses import dataclass

from jaxtrain.ranges import check_positive_or_none


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """A scale, a soft cap and sinks of the scores of attention.

    `scale` multiplies the scores, head_dim**-0.5 by default. `softcap` bounds them, softcap * tanh(score / softcap)
    (Gemma 2, 2024, arXiv:2408.00118). With `sinks` every head has a learned logit, which takes its share of the softmax
    and has no value (gpt-oss, 2025, arXiv:2508.10925).
    """

    scale: float | None = None
    softcap: float | None = None
    sinks: bool = False

    def __post_init__(self):
        check_positive_or_none(self, "softcap", "scale")
        if (self.scale, self.softcap, self.sinks) == (None, None, False):
            raise ValueError("scale=None, softcap=None, sinks=False: these are the usual scores; leave scores out")
