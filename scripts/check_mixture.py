"""Compare a mixture of experts with a dense model of the same FLOPs a token, and ways to balance its experts.

    python scripts/check_mixture.py --seeds 3
    python scripts/check_mixture.py --time

The first trains configs/moe_tiny.gin, made smaller, on the text of the standard library. The dense model has the hidden
size of the experts of one token together. `batch` is the loss of Fedus et al. (2021), arXiv:2101.03961, equation 4,
over the whole batch: no sum over tokens, so it is exact on one device and without microbatches alone. Prints the
validation loss of each run, and how many times the mean load the fullest expert of any layer has, on one batch.

The second times steps of configs/moe_tiny.gin itself, in turn with those of its dense model, in the time that
processors work for them. So a busy machine changes both alike.
"""

import argparse
import dataclasses
import functools
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.cli.cache import keep_compilations
from jaxtrain.cli.config_file import load
from jaxtrain.config import TrainConfig
from jaxtrain.data import Rows, open_rows
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.moe.balances import Balance, LoadLoss, RouterBias, RowLoss
from jaxtrain.nn.moe.routing import Scores
from jaxtrain.nn.param import merge
from jaxtrain.shapes import ModelState
from jaxtrain.train.feed import Feed
from jaxtrain.train.hooks import Evaluate
from jaxtrain.train.metrics import read_metrics
from jaxtrain.train.state import begin, create_model

CONFIG = Path(__file__).parents[1] / "configs/moe_tiny.gin"
SMALLER = {
    "model.d_model": 64,
    "model.repeats": 2,
    "model.pattern[0].mixer.head_dim": 16,
    "phases[0].sequence_length": 128,
    "optimizer.learning_rate.peak": 4e-3,
}
COEFFICIENT = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLoss(Balance):
    """coefficient * sum_e f_e P_e of the batch at hand."""

    coefficient: float
    paper: ClassVar[str] = "arXiv:2101.03961"

    def loss(self, scores: Scores, chosen: jax.Array, real: jax.Array, own) -> dict[str, jax.Array]:
        load = jnp.sum(chosen, axis=(0, 1))
        summed = jnp.sum(scores.probabilities * real[..., None], axis=(0, 1))
        return {"balance": self.coefficient * jnp.sum(load / jnp.sum(load) * len(load) * summed)}


BALANCES: dict[str, tuple[Balance, ...]] = {
    "none": (),
    "row": (RowLoss(coefficient=COEFFICIENT),),
    "load": (LoadLoss(coefficient=COEFFICIENT),),
    "batch": (BatchLoss(coefficient=COEFFICIENT),),
    "bias": (RouterBias(rate=1e-3),),
}


def variants(config: TrainConfig) -> dict[str, DecoderConfig]:
    """Return the models to compare: a dense one, and mixtures with other balances."""

    def with_mlp(mlp) -> DecoderConfig:
        return dataclasses.replace(config.model, pattern=(dataclasses.replace(block, mlp=mlp),))

    (block,) = config.model.pattern
    assert isinstance(block.mlp, MixtureConfig) and isinstance(block.mlp.expert, GatedMLPConfig)
    dense = dataclasses.replace(block.mlp.expert, hidden=block.mlp.expert.hidden * block.mlp.top_k)
    mixtures = {name: with_mlp(dataclasses.replace(block.mlp, balances=own)) for name, own in BALANCES.items()}
    return {"dense": with_mlp(dense)} | mixtures


@functools.cache
def _loads(model: DecoderConfig):
    graph = abstract_model(model).graph
    return jax.jit(lambda state, batch: merge(graph, state).hidden(batch).sums.counts)


def fullest(model: DecoderConfig, state: ModelState, rows: Rows) -> float:
    """Return the greatest load of an expert over the mean of its layer; 1 for a model without experts."""
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *(rows[index] for index in range(16)))
    loads = [leaf for path, leaf in jax.tree.leaves_with_path(_loads(model)(state, batch)) if "load" in str(path[-1])]
    return max((float(np.max(load / np.mean(load, axis=-1, keepdims=True))) for load in loads), default=1.0)


def step_seconds(config: TrainConfig, models: dict[str, DecoderConfig], *, rounds: int, warmup: int = 3):
    """Return the processor time of each model's steps, which take turns on the same batches."""
    span, mesh = config.recipe.spans[0], config.mesh.build(jax.devices()[:1])
    feed = Feed(config.data, span.phase, seed=config.seed, mesh=mesh, taken={})
    programs = {
        name: dataclasses.replace(config, model=model).recipe.program(span, mesh) for name, model in models.items()
    }
    states = {
        name: begin(create_model(models[name], mesh, jax.random.key(0)), p.tx, p.target) for name, p in programs.items()
    }
    found: dict[str, list[float]] = {name: [] for name in models}
    with jax.set_mesh(mesh):
        for _ in range(warmup + rounds):
            batch = next(feed)
            for name, program in programs.items():
                start = time.process_time()
                states[name], measured = program.step(states[name], batch, jax.random.key(1))
                measured["loss"].block_until_ready()
                found[name].append(time.process_time() - start)
    return {name: seconds[warmup:] for name, seconds in found.items()}


def print_step_times(rounds: int) -> None:
    """Print the median of each model, and that of the ratios to the dense model's step of the same round."""
    config = load(CONFIG, []).config
    models = variants(config)
    found = step_seconds(config, {"dense": models["dense"], "mixture": config.model}, rounds=rounds)
    for name, seconds in found.items():
        ratio = statistics.median(own / dense for own, dense in zip(seconds, found["dense"], strict=True))
        print(f"{name}: {statistics.median(seconds) * 1e3:,.0f} ms of processor time a step, ratio {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--time", action="store_true", help="time steps and train nothing")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each model that are timed")
    arguments = parser.parse_args()
    keep_compilations()
    if arguments.time:
        print_step_times(arguments.rounds)
        return
    config = load(CONFIG, [f"{key}={value}" for key, value in SMALLER.items()]).config
    phase = dataclasses.replace(config.phases[0], steps=arguments.steps)
    config = dataclasses.replace(config, phases=(phase,), hooks=(Evaluate(every_steps=arguments.steps),), writers=())
    models = variants(config)
    for name in ("dense", "row"):
        print(f"{name}: {models[name].flops_per_token(128) / 1e6:.3f} million FLOPs a token", flush=True)
    print("seed  " + "  ".join(f"{name:>12}" for name in models), flush=True)
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(arguments.seeds):
            found.append([])
            for name, model in models.items():
                folder = Path(temporary) / f"{name}{seed}"
                result = dataclasses.replace(config, model=model, seed=seed).train(folder)
                rows = open_rows(config.data, split="validation", sequence_length=128, seed=0, num_epochs=1)
                *_, last = (r for r in read_metrics(folder / "metrics.jsonl") if "validation_loss" in r)
                found[-1].append((last["validation_loss"], fullest(model, result.state.model, rows)))
            print(f"{seed:4}  " + "  ".join(f"{loss:.4f} {load:5.2f}" for loss, load in found[-1]), flush=True)
    print("mean  " + "  ".join(f"{loss:.4f} {load:5.2f}" for loss, load in np.mean(found, axis=0)))


if __name__ == "__main__":
    main()
