"""A schedule from gradient norms, by its closed forms."""

import json

import numpy as np
import pytest
from messages import refused

from jaxtrain.optim.refinement import refined_rates
from jaxtrain.optim.schedules import Refined


def test_norms_that_stay_give_a_straight_line():
    found = refined_rates(np.full(101, 0.7), window=5)
    np.testing.assert_allclose(found, 1 - np.arange(101) / 100, rtol=0, atol=2e-16)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_rate_is_the_weight_of_its_step_times_those_of_later_steps(power):
    norms = np.array([3.0, 1.0, 2.0, 0.5])
    w = norms**-power
    expected = np.array([w[0] * w[1:].sum(), w[1] * w[2:].sum(), w[2] * w[3], 0.0])
    np.testing.assert_allclose(refined_rates(norms, power=power), expected / expected.max(), rtol=1e-12)


def test_high_norms_at_the_start_make_a_warm_up_and_rising_ones_an_anneal():
    steps = np.arange(100)
    found = refined_rates(1 + 4 * np.exp(-steps / 3) + 2 * np.exp((steps - 99) / 10))
    assert found[0] < 0.1 and 5 < found.argmax() < 20 and found[-1] == 0
    assert (np.diff(found[:8]) > 0).all() and (np.diff(found[30:]) < 0).all()


def test_a_single_outlier_is_filtered_out():
    norms = np.ones(50)
    norms[[0, 20, 49]] = 100.0
    np.testing.assert_array_equal(refined_rates(norms, window=5)[1:-1], refined_rates(np.ones(50), window=5)[1:-1])


@pytest.mark.parametrize(("norms", "window"), [([1.0], 1), ([1.0, 0.0], 1), ([1.0, np.nan], 1), ([1.0, 2.0], 2)])
def test_norms_and_windows_that_cannot_be_used_are_refused(norms, window):
    with refused(ValueError, f"window={window}" if window == 2 else "norms"):
        refined_rates(np.array(norms), window=window)


def _metrics(path, norms):
    records = [{"step": step, "gradient_norm": norm} for step, norm in enumerate(norms, 1)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_the_schedule_has_the_curve_of_the_metrics_stretched_to_its_steps(tmp_path):
    norms = [3.0, 1.0, None, 2.0, 0.5, 0.7]
    rate = Refined(path=_metrics(tmp_path / "metrics.jsonl", norms), peak=0.2, window=0.0).build(40)
    expected = 0.2 * refined_rates(np.array([norm for norm in norms if norm]))
    np.testing.assert_allclose([float(rate(step)) for step in (0, 10, 20, 30, 40)], expected, rtol=1e-5)


@pytest.mark.parametrize("text", ["", "no json", "[1]"])
def test_a_file_without_norms_is_refused(text, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(text)
    with refused(ValueError, "path=", "metrics.jsonl"):
        Refined(path=str(tmp_path / "metrics.jsonl"), peak=0.2).build(40)
