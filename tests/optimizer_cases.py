"""Every optimizer there is, and the small network whose parameters the tests give them."""

import functools
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from tiny import matrix, vector

from jaxtrain.cli.config_types import subclasses
from jaxtrain.optim.adabound import AdaBound
from jaxtrain.optim.adamod import AdaMod
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.d_adaptation import DAdaptation
from jaxtrain.optim.lars import LARS
from jaxtrain.optim.prodigy import Prodigy
from jaxtrain.optim.schedules import Constant
from jaxtrain.optim.wrapper import Wrapper

GOLDEN = Path(__file__).parent / "golden"
RATE, DECAY = 0.02, 0.5
RATES = Constant(peak=RATE)
OTHERWISE = {  # where the few steps of a test would go nowhere with the defaults, or too far
    AdaBound: {"final_factor": 0.1},
    AdaMod: {"b3": 0.9},
    DAdaptation: {"d0": 0.1, "b2": 0.9},
    LARS: {"trust_coefficient": 0.1},
    Prodigy: {"d0": 0.1},
}
ONE_RATE = (DAdaptation, Prodigy)  # which find one rate for all parameters together
OPTIMIZERS = [cls for _, cls in sorted(subclasses(Optimizer).items()) if cls.__module__.startswith("jaxtrain.")]


def case_of(optimizer: type[Optimizer], decay: float) -> Optimizer:
    """Return an optimizer with the rate of the tests; a wrapper is one around AdamW."""
    if issubclass(optimizer, Wrapper):
        return optimizer(optimizer=AdamW(learning_rate=RATES, weight_decay=decay))
    return optimizer(learning_rate=RATES, weight_decay=decay, **OTHERWISE.get(optimizer, {}))


ALL = [case_of(optimizer, DECAY) for optimizer in OPTIMIZERS]
every = functools.partial(pytest.mark.parametrize, "optimizer", ids=lambda o: type(o).__name__)

# Two layers of a small network: a matrix, a projection by heads, and the vectors that decay must spare.
FACTS = {
    "up": matrix("repeats", "embed", "mlp"),
    "query": matrix("repeats", "embed", "heads", "head_dim"),
    "up_bias": vector("repeats", "mlp"),
    "query_bias": vector("repeats", "heads", "head_dim"),
    "scale": vector("repeats", "width"),
}
SHAPES = {"up": (2, 6, 8), "query": (2, 6, 2, 3), "up_bias": (2, 8), "query_bias": (2, 2, 3), "scale": (2, 6)}


# Matrices large enough to be factored and quantized, vectors, and experts; two stacks of different length, and a table.
LARGE_FACTS = {
    "encoder": {
        "query": matrix("repeats", "embed", "heads", "head_dim"),
        "scale": vector("repeats", "width"),
    },
    "decoder": {
        "up": matrix("repeats", "embed", "mlp"),
        "bias": vector("repeats", "mlp"),
        "experts": matrix("repeats", "experts", "embed", "mlp"),
    },
    "embedding": {"table": matrix("vocab", "embed")},
}
LARGE_SHAPES = {
    "encoder": {"query": (3, 128, 2, 64), "scale": (3, 128)},
    "decoder": {"up": (2, 128, 160), "bias": (2, 160), "experts": (2, 3, 32, 128)},
    "embedding": {"table": (9, 128)},
}
LAYER_SIZES = {"encoder": np.float32([1e-2, 1.0, 30.0]), "decoder": np.float32([0.1, 10.0])}
EXPERT_SIZES = np.float32([1e-2, 1.0, 30.0])[:, None, None]


def draw_tree(seed: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def draw_large(seed: int) -> dict:
    """Return a tree whose layers and experts differ by far in size, as norms over a stack would show."""

    def scaled(stack: str, name: str, x: np.ndarray) -> np.ndarray:
        x = x * EXPERT_SIZES if name == "experts" else x
        return x if stack not in LAYER_SIZES else x * LAYER_SIZES[stack].reshape(-1, *(1,) * (x.ndim - 1))

    return {
        stack: {name: scaled(stack, name, x) for name, x in draw_tree(seed, shapes).items()}
        for stack, shapes in LARGE_SHAPES.items()
    }


def build(optimizer: Optimizer, rate: float = RATE, axes: dict = FACTS) -> optax.GradientTransformationExtraArgs:
    return optax.with_extra_args_support(optimizer.build(Constant(peak=rate).build(100), axes))


def follow(tx: optax.GradientTransformation, params: dict, gradients: list[dict], look) -> list:
    """Return what `look(state, params)` sees behind each step of these gradients, which are the same at all points."""
    state, seen = tx.init(params), []
    for gradient in gradients:
        params, state = _step(tx)(params, state, gradient)
        seen.append(look(state, params))
    return seen


@functools.cache
def _step(tx: optax.GradientTransformation):
    update = optax.with_extra_args_support(tx).update

    @jax.jit
    def step(params: dict, state: optax.OptState, gradient: dict) -> tuple[dict, optax.OptState]:
        updates, state = update(gradient, state, params, value=0.0, grad_fn=lambda _: gradient)
        return optax.apply_updates(params, updates), state

    return step


def read_golden(name: str) -> dict[str, dict[str, np.ndarray]]:
    """Return a recorded trajectory (scripts/peers/make_optimizer_goldens.py): kind -> parameter -> array."""
    found = {}
    with np.load(GOLDEN / name) as file:
        for key in file.files:
            kind, _, parameter = key.partition("/")
            found.setdefault(kind, {})[parameter] = file[key]
    return found


def steps_of(arrays: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return one tree a step of arrays that have the steps before their axes."""
    count = len(next(iter(arrays.values())))
    return [{name: array[step] for name, array in arrays.items()} for step in range(count)]


def as_float32(tree: dict) -> dict:
    return jax.tree.map(lambda x: x.astype(np.float32), tree)


SMALL_FACTS = {"matrix": matrix("embed", "mlp"), "vector": vector("width")}


def follow_golden(name: str, optimizer: Optimizer) -> tuple[list[dict], list[dict]]:
    """Return the points behind each step of a recorded matrix and vector at a rate of 0.05, and those recorded."""
    golden = read_golden(name)
    tx = build(optimizer, rate=0.05, axes=SMALL_FACTS)
    gradients = [as_float32(step) for step in steps_of(golden["gradient"])]
    seen = follow(tx, as_float32(golden["initial"]), gradients, lambda _, params: params)
    return seen, steps_of(golden["point"])
