"""A schedule from the gradient norms of a run. Defazio et al. (2023), arXiv:2310.07831, algorithm 1 and section 3.

The norms G_t are smoothed by a median filter, whose window is reflected at the ends. With w_t = G_t^-2, or the inverse
L1 norm for optimizers like Adam, the rate is w_t times the sum of the later w, made 1 at its highest.
"""

import numpy as np


def refined_rates(norms: np.ndarray, *, window: int = 1, power: float = 2.0) -> np.ndarray:
    """Return the rate of every step, the highest 1. `power` is 2 for SGD and L2 norms, 1 for Adam and L1 norms.

    Raises:
        ValueError: there are fewer than two norms, one is not above 0, or the window is even or too wide.
    """
    norms = np.asarray(norms, np.float64)
    if len(norms) < 2 or not (norms > 0).all() or not np.isfinite(norms).all():
        raise ValueError("norms: give two or more, all finite and above 0; leave out steps that were skipped")
    if window % 2 != 1 or not 1 <= window < 2 * len(norms):
        raise ValueError(f"window={window}: must be odd, at least 1 and below {2 * len(norms)}, twice the norms")
    padded = np.pad(norms, window // 2, mode="symmetric")
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=-1)
    w = (smooth / smooth.min()) ** -power
    later = np.append(np.cumsum(w[:0:-1])[::-1], 0.0)
    rates = w * later
    return rates / rates.max()
