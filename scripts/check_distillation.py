"""Compare students on 3% of the text: with hard labels, and with the soft targets of five models of all the text.

    python scripts/check_distillation.py --seeds 5

This is section 6 of Hinton et al. (2015), arXiv:1503.02531, soft targets as regularizers, in small: the modules of the
standard library, a byte-level decoder, and teachers of the student's size. Students of one seed have the same initial
weights and see the same rows. Prints, seed by seed, the loss on text that no teacher and no student has seen, after the
last step and at the best evaluation, and the means.
"""

import argparse
import dataclasses
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxtrain.cli.cache import keep_compilations
from jaxtrain.config import TrainConfig
from jaxtrain.data import DataConfig, TextFiles, open_rows
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.objectives.distill import Distill
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.schedules import Cosine
from jaxtrain.train.evaluation import evaluate, validation_rows
from jaxtrain.train.hooks import Checkpoint
from jaxtrain.train.hooks.base import Hook, due
from jaxtrain.train.phases import Phase
from jaxtrain.train.step import make_evaluation_step
from jaxtrain.train.teachers import Ensemble, FromRun

TEXT = DataConfig(source=TextFiles(glob=f"{sysconfig.get_path('stdlib')}/*.py"), validation_fraction=0.05)
# A document is held out where a hash of its name is below the fraction. So students train on a part of the teachers'
# text, and what is held out from the teachers is held out from them.
LITTLE = dataclasses.replace(TEXT, validation_fraction=0.97)
MODEL = DecoderConfig(
    vocab_size=320,
    d_model=64,
    repeats=2,
    pattern=(BlockConfig(mixer=AttentionConfig(heads=4, kv_heads=2, head_dim=16), mlp=GatedMLPConfig(hidden=192)),),
    max_length=64,
)
ROWS, LENGTH, BATCHES = 16, 64, 40  # of a batch, of a row, and of an evaluation
MEMBERS = range(100, 105)  # the seeds of the teachers


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut(Hook):
    """The loss on the text that all runs hold out."""

    every_steps: int
    take: Callable[[float], None]

    @property
    def name(self) -> str:
        return "held_out"

    def after_step(self, run, state, hook_state):
        if due(run, self.every_steps):
            self.take(loss_of(run.recipe.model, state.model, run.phase.program.mesh))
        return state, hook_state


def loss_of(model: DecoderConfig, state, mesh) -> float:
    rows = validation_rows(TEXT, sequence_length=LENGTH)
    step = make_evaluation_step(abstract_model(model).graph, NextToken())
    return evaluate(step, NextToken(), state, rows, batch_size=ROWS, batches=BATCHES, mesh=mesh).loss


def losses(folder: Path, arguments: argparse.Namespace, *, seed: int, **changes) -> list[float]:
    """Train a run, and return its losses on what is held out, in order."""
    found: list[float] = []
    steps = arguments.steps
    config = TrainConfig(
        model=MODEL,
        data=TEXT,
        optimizer=AdamW(learning_rate=Cosine(peak=4e-3, warmup_steps=20)),
        phases=(Phase(steps=steps, batch_size=ROWS, sequence_length=LENGTH),),
        hooks=(HeldOut(every_steps=max(steps // 8, 1), take=found.append), Checkpoint(every_steps=steps)),
        seed=seed,
        writers=(),
    )
    dataclasses.replace(config, **changes).train(folder)
    return found


def tokens(data: DataConfig) -> int:
    """Return the tokens of the training split that have a loss."""
    [source] = open_rows(data, split="train", sequence_length=LENGTH, seed=0).sources
    return source.tokens_per_epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--hard", type=float, default=0.1, help="the share of the loss of the targets")
    arguments = parser.parse_args()
    keep_compilations()
    share, seen = tokens(LITTLE) / tokens(TEXT), arguments.steps * ROWS * LENGTH
    print(f"students have {tokens(LITTLE):,} tokens, {share:.1%} of the teachers', and see {seen:,}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        of_teachers = [losses(folder / f"{seed}", arguments, seed=seed)[-1] for seed in MEMBERS]
        print("teachers:", " ".join(f"{loss:.4f}" for loss in of_teachers), flush=True)
        teacher = Ensemble(teachers=tuple(FromRun(path=str(folder / f"{seed}"), model=MODEL) for seed in MEMBERS))
        soft = {
            "model": dataclasses.replace(MODEL, teacher=teacher),
            "objective": Distill(temperature=arguments.temperature, hard=arguments.hard),
        }
        table = []
        print("seed  hard: last, best   soft: last, best", flush=True)
        for seed in range(arguments.seeds):
            students = [
                losses(folder / f"{name}{seed}", arguments, seed=seed, data=LITTLE, **changes)
                for name, changes in (("hard", {}), ("soft", soft))
            ]
            table.append([number for found in students for number in (found[-1], min(found))])
            print(f"{seed:4}  " + "  ".join(f"{number:.4f}" for number in table[-1]), flush=True)
        print("mean  " + "  ".join(f"{number:.4f}" for number in np.mean(table, axis=0)))


if __name__ == "__main__":
    main()
