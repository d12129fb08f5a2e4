"""The 8-bit AdamW step: every form against the definition, and the definition against AdamW itself."""

import functools

import checked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ahead_of_time import H100, TPUS, compile_for
from compiled_kernels import kernels_in
from interpreted import interpreted
from jaxtrain_kernels.adamw_8bit import AdamW, adamw_8bit
from jaxtrain_kernels.block_quant import DynamicMap, Float8E4M3, Int8, dequantize, quantize
from tolerances import SAME_UPDATE, SCALES, assert_close

RULE = AdamW(b1=0.9, b2=0.95, epsilon=1e-8, weight_decay=0.1)
DYNAMIC = (DynamicMap(), DynamicMap(signed=False))
FLOAT8 = (Float8E4M3(), Float8E4M3())
BLOCK = {"block": (8, 32), "axis": (-2, -1)}


def _gradients(shape, steps: int, *, decades: int = 4) -> list[np.ndarray]:
    """Return gradients whose deviations differ by decades from element to element, with rows of zeros."""
    random = np.random.default_rng(0)
    deviation = 10.0 ** random.uniform(-decades, 0, shape)
    deviation[..., :8, :] = 0.0
    return [(random.standard_normal(shape) * deviation).astype(np.float32) for _ in range(steps)]


def _zeros(shape, formats, **block):
    return [quantize(np.zeros(shape, np.float32), format=format, **block) for format in formats]


def _run(gradients, formats, implementation, **block):
    """Return the parameter after a step a gradient, and the updates and moments on the way."""
    shape = gradients[0].shape

    @jax.jit
    def one(parameter, gradient, m, v, step):
        return adamw_8bit(
            parameter, gradient, m, v, rule=RULE, learning_rate=0.01, step=step, implementation=implementation
        )

    parameter, (m, v), seen = jnp.ones(shape), _zeros(shape, formats, **block), []
    for step, gradient in enumerate(gradients, 1):
        update, m, v = one(parameter, gradient, m, v, step)
        parameter = parameter + update
        seen.append((update, m, v))
    return parameter, seen


@pytest.mark.parametrize(
    ("shape", "formats", "block"), [((2, 24, 100), DYNAMIC, BLOCK), ((16, 257), FLOAT8, {"block": 128})], ids=str
)
@pytest.mark.parametrize("implementation", ["xla", "tpu", "gpu"])
def test_every_form_is_the_definition_code_for_code(shape, formats, block, implementation):
    # Of one sign: a sum that cancels may differ between compilers, and with it the smallest magnitude of a block.
    first, second = (np.abs(gradient) for gradient in _gradients(shape, 2))
    parameter, [(_, m, v)] = _run([first], formats, "reference", **block)
    step = functools.partial(adamw_8bit, parameter, second, m, v, rule=RULE, learning_rate=0.01, step=2)
    desired, *desired_moments = jax.jit(functools.partial(step, implementation="reference"))()
    with interpreted(implementation):
        actual, *moments = step(implementation=implementation)
        assert_close(actual, desired, SAME_UPDATE)
        for moment, wanted in zip(moments, desired_moments, strict=True):
            np.testing.assert_array_equal(np.asarray(moment.codes), np.asarray(wanted.codes))
            assert_close(moment.scales, wanted.scales, SCALES)


@pytest.mark.parametrize("formats", [DYNAMIC, FLOAT8], ids=["dynamic", "fp8"])
def test_the_step_stays_near_that_of_adamw(formats):
    shape = (32, 64)
    gradients = _gradients(shape, 20, decades=1)
    parameter, _ = _run(gradients, formats, "xla", **BLOCK)
    exact = np.ones(shape)
    m = v = np.zeros(shape)
    for t, gradient in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient.astype(np.float64) ** 2
        direction = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
        exact = exact - 0.01 * (direction + 0.1 * exact)
    moved = np.abs(exact - np.ones(shape) * (1 - 0.001) ** 20).mean()
    assert np.abs(parameter - exact).mean() < 0.06 * moved


@pytest.mark.parametrize("topology", [*TPUS, H100])
def test_the_kernel_compiles(topology):
    """Both formats and kinds of blocks, in one program."""
    step = functools.partial(
        adamw_8bit, rule=RULE, learning_rate=0.01, step=1, implementation="gpu" if topology == H100 else "tpu"
    )
    calls = []
    for shape, formats, block in (
        ((2, 64, 4, 128), DYNAMIC, {"block": (8, 32), "axis": (-3, -1)}),
        ((16, 512), FLOAT8, {}),
    ):
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        moments = (jax.eval_shape(functools.partial(quantize, format=format, **block), x) for format in formats)
        calls.append((x, x, *moments))
    compiled = compile_for(topology, lambda calls: [step(*call) for call in calls], calls)
    assert kernels_in(compiled) == {"adamw_8bit": 2}


def test_a_second_moment_above_zero_never_becomes_zero():
    gradient = np.full((1, 256), 1e-7, np.float32)
    gradient[0, 0], gradient[0, 1] = 1.0, 0.0
    _, m, v = adamw_8bit(
        jnp.zeros((1, 256)), gradient, *_zeros((1, 256), DYNAMIC), rule=RULE, learning_rate=1.0, step=1
    )
    stored = np.asarray(dequantize(v))[0]
    assert stored[1] == 0 and np.all(stored[2:] > 0)
    assert not np.any(np.asarray(dequantize(quantize(np.square(gradient), format=DYNAMIC[1])))[0, 1:])  # but for that


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient": np.zeros((4, 8), np.float32)}, r"shape \(4, 4\) with gradient \(4, 8\): give the same"),
        ({"v": quantize(np.zeros((4, 4), np.float32), format=Int8(), block=2)}, "both moments in the same blocks"),
        ({"m": _zeros((4, 4), DYNAMIC)[1]}, "m is in .* no sign: give it a signed format"),
        ({"parameter": np.zeros((4, 4), int)}, "a parameter of dtype int64, a gradient of float32: give floats"),
        ({"implementation": "triton"}, "'triton': adamw_8bit has xla"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(changes, message):
    parameter, (m, v) = np.zeros((4, 4), np.float32), _zeros((4, 4), DYNAMIC)
    arguments = {"parameter": parameter, "gradient": parameter, "m": m, "v": v} | changes
    with checked.off(), pytest.raises(ValueError, match=message):
        adamw_8bit(**arguments, rule=RULE, learning_rate=1.0, step=1)
