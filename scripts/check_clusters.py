"""Compare the mixture of clusters of MoEC with a plain one on a text that is too small: Xie et al. (2022).

    python scripts/check_clusters.py --seeds 3

arXiv:2207.09094. Trains configs/moe_tiny.gin, made smaller, for many epochs of the standard library's `json`. Prints
the loss on rows of the training split and on the validation split, both without dropout, and the gap between them.
Losses are in nats a token.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.cli.cache import keep_compilations
from jaxtrain.cli.config_file import load
from jaxtrain.config import TrainConfig
from jaxtrain.data import DataConfig, TextFiles, open_rows
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.moe.balances import ClusterLoss, LoadLoss
from jaxtrain.nn.moe.selections import ClusterDropout
from jaxtrain.nn.param import merge
from jaxtrain.shapes import ModelState

CONFIG = Path(__file__).parents[1] / "configs/moe_tiny.gin"
LENGTH = 64
SMALLER = {
    "model.d_model": 64,
    "model.repeats": 2,
    "model.pattern[0].mixer.head_dim": 16,
    "phases[0].sequence_length": LENGTH,
    "optimizer.learning_rate.peak": 4e-3,
}
CLUSTERS, RATE = 2, 0.5
BALANCE = LoadLoss(coefficient=0.01)


def variants(config: TrainConfig) -> dict[str, DecoderConfig]:
    """Return a plain mixture, and those with either part of MoEC and with both."""
    (block,) = config.model.pattern
    assert isinstance(block.mlp, MixtureConfig)
    dropped = ClusterDropout(clusters=CLUSTERS, rate=RATE)
    variance = (BALANCE, ClusterLoss(clusters=CLUSTERS, coefficient=0.01))
    plain = dataclasses.replace(block.mlp, balances=(BALANCE,))
    mixtures = {
        "plain": plain,
        "variance": dataclasses.replace(plain, balances=variance),
        "dropout": dataclasses.replace(plain, selection=dropped),
        "both": dataclasses.replace(plain, balances=variance, selection=dropped),
    }
    return {
        name: dataclasses.replace(config.model, pattern=(dataclasses.replace(block, mlp=own),))
        for name, own in mixtures.items()
    }


def loss(model: DecoderConfig, state: ModelState, data: DataConfig, split: str) -> float:
    """Return the mean loss of the targets of the first 64 rows of a split."""
    rows = open_rows(data, split=split, sequence_length=LENGTH, seed=0, num_epochs=1)
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *(rows[index] for index in range(min(64, len(rows)))))
    graph = abstract_model(model).graph

    @jax.jit
    def mean(state):
        nll = -jax.nn.log_softmax(merge(graph, state)(batch))
        of_targets = jnp.take_along_axis(nll, batch.targets[..., None], axis=-1)[..., 0]
        return jnp.sum(of_targets * batch.weights) / jnp.sum(batch.weights)

    return float(mean(state))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    keep_compilations()
    config = load(CONFIG, [f"{key}={value}" for key, value in SMALLER.items()]).config
    phase = dataclasses.replace(config.phases[0], steps=arguments.steps, batch_size=8)
    text = TextFiles(glob=f"{Path(json.__file__).parent}/*.py")
    data = dataclasses.replace(config.data, source=text, validation_fraction=0.3)
    config = dataclasses.replace(config, phases=(phase,), data=data, hooks=(), writers=())
    models, found = variants(config), []
    print("seed  " + "  ".join(f"{name:>20}" for name in models), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(arguments.seeds):
            found.append([])
            for name, model in models.items():
                own = dataclasses.replace(config, model=model, seed=seed)
                state = own.train(Path(temporary) / f"{name}{seed}").state.model
                seen, held_out = (loss(model, state, data, split) for split in ("train", "validation"))
                found[-1].append((seen, held_out, held_out - seen))
            show(f"{seed:4}", found[-1])
    show("mean", np.mean(found, axis=0))


def show(name: str, of_models) -> None:
    """Print a line with the losses of each model and their gap."""
    shown = (f"{seen:.3f} {held_out:.3f} {gap:.3f}" for seen, held_out, gap in of_models)
    print("  ".join([name, *(f"{text:>20}" for text in shown)]), flush=True)


if __name__ == "__main__":
    main()
