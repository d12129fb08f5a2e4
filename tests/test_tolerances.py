"""What the bound by the norm of a leaf lets pass, and what it does not."""

import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import SAME_GRADIENT, OfNorm, Tolerance, assert_close, error_of_norm, largest_error

RANDOM = np.random.default_rng(0)
LEAF = RANDOM.standard_normal((64, 32)).astype(np.float32)


def test_rounding_passes_where_the_terms_of_an_element_nearly_cancel():
    """The sums of one matrix product, the columns of the first factor in another order; one element is 1e-5 or so."""
    x, y, order = RANDOM.standard_normal((64, 512)), RANDOM.standard_normal((512, 32)), RANDOM.permutation(512)
    x[0] -= y[:, 0] * (x[0] @ y[:, 0] - 1e-5) / (y[:, 0] @ y[:, 0])
    x, y = jnp.float32(x), jnp.float32(y)
    one, other = x @ y, x[:, order] @ y[order]
    with pytest.raises(AssertionError):
        assert_close(other, one, Tolerance(absolute=1e-6, relative=1e-4))
    assert_close(other, one, OfNorm(1e-6))


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_the_bound_is_as_tight_on_leaves_of_any_size(size):
    leaf = (size * LEAF.astype(np.float64)).astype(np.float32)
    error = RANDOM.standard_normal(LEAF.shape) * size * SAME_GRADIENT.relative
    assert_close(leaf + 0.9 * error, leaf, SAME_GRADIENT)
    with pytest.raises(AssertionError, match=r"mesh \['b'\]: an error of .* of its norm"):
        assert_close({"a": leaf, "b": leaf + 1.1 * error}, {"a": leaf, "b": leaf}, SAME_GRADIENT, "mesh")


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_nothing_that_is_not_finite_passes(wrong):
    spoilt = LEAF.copy()
    spoilt[3, 4] = wrong
    with pytest.raises(AssertionError):
        assert_close(spoilt, LEAF, SAME_GRADIENT)
    assert not largest_error([LEAF, spoilt], [LEAF, LEAF]) <= 1


def test_zeros_are_equal_to_nothing_but_zeros():
    zeros = np.zeros((2, 3))
    assert_close(zeros, zeros, SAME_GRADIENT)
    with pytest.raises(AssertionError):
        assert_close(zeros + 1e-12, zeros, SAME_GRADIENT)


def test_a_leaf_of_another_shape_is_no_match_even_where_it_broadcasts():
    with pytest.raises(AssertionError, match=r"\(1, 32\) is not \(64, 32\)"):
        error_of_norm(LEAF[:1], LEAF)
