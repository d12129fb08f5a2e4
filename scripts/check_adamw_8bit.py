"""Compare AdamW8bit with AdamW: the validation loss that runs of a configuration end with, seed by seed.

    python scripts/check_adamw_8bit.py configs/adam8bit_tiny.gin --seeds 3

Prints a row a seed and, at the end, whether every 8-bit run ended within 1% of its neighbour.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

from jaxtrain.cli.config_file import load
from jaxtrain.config import TrainConfig
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.adamw_8bit import AdamW8bit
from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.moments.dynamic import DynamicMoments
from jaxtrain.optim.moments.float8 import Float8Moments
from jaxtrain.train.hooks import Evaluate
from jaxtrain.train.metrics import read_metrics

ALLOWED = 0.01


def optimizers(eight: AdamW8bit) -> dict[str, Optimizer]:
    """Return what is compared, plain AdamW first."""
    shared = {name: getattr(eight, name) for name in ("learning_rate", "b1", "b2", "epsilon", "weight_decay")}
    return {
        "AdamW": AdamW(**shared),
        "dynamic map": dataclasses.replace(eight, moments=DynamicMoments()),
        "FP8": dataclasses.replace(eight, moments=Float8Moments()),
    }


def final_loss(config: TrainConfig) -> float:
    """Return the last validation loss of a run."""
    with tempfile.TemporaryDirectory() as folder:
        config.train(Path(folder) / "run")
        records = read_metrics(Path(folder) / "run" / "metrics.jsonl")
    return [record["validation_loss"] for record in records if "validation_loss" in record][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="shorter runs than the configuration's")
    arguments = parser.parse_args()
    config = load(str(arguments.config), []).config
    [phase] = config.phases
    steps = arguments.steps or phase.steps
    phase = dataclasses.replace(phase, steps=steps)
    config = dataclasses.replace(config, phases=(phase,), hooks=(Evaluate(every_steps=steps),), writers=())
    worst = 0.0
    for seed in range(arguments.seeds):
        losses = {
            name: final_loss(dataclasses.replace(config, optimizer=optimizer, seed=seed))
            for name, optimizer in optimizers(config.optimizer).items()
        }
        plain = losses["AdamW"]
        worst = max(worst, *(abs(loss / plain - 1) for loss in losses.values()))
        print(f"seed {seed}: " + ", ".join(f"{n} {loss:.4f} ({loss / plain - 1:+.2%})" for n, loss in losses.items()))
    print(f"{steps} steps: at most {worst:.2%} apart; allowed {ALLOWED:.0%}")
    if worst > ALLOWED:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
