"""Compare students on 3% of the text: with hard labels, and with the soft targets of five models of all the text.

    python scripts/check_distillation.py --seeds 5

This is section 6 of Hinton et al. (2015), arXiv:1503.02531, soft targets as regularizers, in small: modules of the
standard library in passages of 2,000 characters, a byte-level decoder, and teachers of the student's size. Students of
one seed have the same initial weights and see the same rows. Prints, seed by seed, the loss on modules that no teacher
and no student has seen, after the last step and at the best of five evaluations, and the means.
"""

import argparse
import dataclasses
import functools
import json
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxtrain.cli.cache import keep_compilations
from jaxtrain.config import TrainConfig
from jaxtrain.data import DataConfig, JsonLines, Rows, open_rows
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.objectives.distill import Distill
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.schedules import Cosine
from jaxtrain.train.evaluation import evaluate
from jaxtrain.train.hooks import Checkpoint
from jaxtrain.train.hooks.base import Hook, due
from jaxtrain.train.phases import Phase
from jaxtrain.train.step import make_evaluation_step
from jaxtrain.train.teachers import Ensemble, FromRun

MODEL = DecoderConfig(
    vocab_size=320,
    d_model=64,
    repeats=2,
    pattern=(BlockConfig(mixer=AttentionConfig(heads=4, kv_heads=2, head_dim=16), mlp=GatedMLPConfig(hidden=192)),),
    max_length=64,
)
MODULES = "[a-d]*.py"
PASSAGE, ALL, LITTLE = 2_000, 0.9, 0.03  # characters, part of the modules, part of their passages
ROWS, LENGTH, BATCHES = 16, 64, 20  # of a batch, of a row, and of an evaluation
MEMBERS = range(100, 105)  # the seeds of the teachers


class Texts:
    """All the text, little of it, and modules that are held out, each a file of passages."""

    def __init__(self, folder: Path):
        random = np.random.default_rng(0)
        modules = [path.read_text() for path in sorted(Path(sysconfig.get_path("stdlib")).glob(MODULES))]
        modules = [modules[at] for at in random.permutation(len(modules))]
        seen = round(ALL * len(modules))
        passages, held_out = (
            [text[at : at + PASSAGE] for text in part for at in range(0, len(text), PASSAGE)]
            for part in (modules[:seen], modules[seen:])
        )
        few = random.choice(len(passages), round(LITTLE * len(passages)), replace=False)
        self.all = _written(folder / "all.jsonl", passages)
        self.little = _written(folder / "little.jsonl", [passages[at] for at in sorted(few)])
        self.held_out = _rows(_written(folder / "held_out.jsonl", held_out), num_epochs=1)


def _written(path: Path, passages: list[str]) -> DataConfig:
    path.write_text("".join(json.dumps({"text": passage}) + "\n" for passage in passages))
    return DataConfig(source=JsonLines(glob=str(path)), validation_fraction=0.0)


def _rows(data: DataConfig, num_epochs: int | None = None) -> Rows:
    return open_rows(data, split="train", sequence_length=LENGTH, seed=0, num_epochs=num_epochs)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut(Hook):
    """The loss of the targets on what is held out."""

    every_steps: int
    rows: Rows
    take: Callable[[float], None]

    @property
    def name(self) -> str:
        return "held_out"

    def after_step(self, run, state, hook_state):
        if due(run, self.every_steps):
            step, mesh = _evaluation_step(run.recipe.model), run.phase.program.mesh
            found = evaluate(step, NextToken(), state.model, self.rows, batch_size=ROWS, batches=BATCHES, mesh=mesh)
            self.take(found.loss)
        return state, hook_state


@functools.cache
def _evaluation_step(model: DecoderConfig):
    return make_evaluation_step(abstract_model(model).graph, NextToken())


def losses(folder: Path, texts: Texts, *, data: DataConfig, steps: int, seed: int, **changes) -> list[float]:
    """Train a run, and return its losses on what is held out, in order."""
    found: list[float] = []
    config = TrainConfig(
        model=MODEL,
        data=data,
        optimizer=AdamW(learning_rate=Cosine(peak=4e-3, warmup_steps=20)),
        phases=(Phase(steps=steps, batch_size=ROWS, sequence_length=LENGTH),),
        hooks=(
            HeldOut(every_steps=-(-steps // 5), rows=texts.held_out, take=found.append),
            Checkpoint(every_steps=steps),
        ),
        seed=seed,
        writers=(),
    )
    dataclasses.replace(config, **changes).train(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--hard", type=float, default=0.1, help="the share of the loss of the targets")
    arguments = parser.parse_args()
    keep_compilations()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts = Texts(folder)
        size, most = (_rows(data).sources[0].tokens_per_epoch for data in (texts.little, texts.all))
        epochs = arguments.steps * ROWS * LENGTH / size
        print(f"students have {size:,} tokens, {size / most:.1%} of {most:,}, {epochs:.1f} times", flush=True)

        def run(name: str, seed: int, data: DataConfig, **changes) -> list[float]:
            return losses(folder / f"{name}{seed}", texts, data=data, steps=arguments.steps, seed=seed, **changes)

        print("teachers", *(f"{run('teacher', seed, texts.all)[-1]:.4f}" for seed in MEMBERS), flush=True)
        teacher = Ensemble(
            teachers=tuple(FromRun(path=str(folder / f"teacher{seed}"), model=MODEL) for seed in MEMBERS)
        )
        soft = {
            "model": dataclasses.replace(MODEL, teacher=teacher),
            "objective": Distill(temperature=arguments.temperature, hard=arguments.hard),
        }
        table = []
        print("seed  hard labels: last, best  soft targets: last, best", flush=True)
        for seed in range(arguments.seeds):
            students = run("hard", seed, texts.little), run("soft", seed, texts.little, **soft)
            table.append([number for found in students for number in (found[-1], min(found))])
            print(f"{seed:4}  " + "  ".join(f"{number:.4f}" for number in table[-1]), flush=True)
        print("mean  " + "  ".join(f"{number:.4f}" for number in np.mean(table, axis=0)))


if __name__ == "__main__":
    main()
