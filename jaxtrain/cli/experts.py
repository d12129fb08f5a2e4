"""Runs that each learned a part of a text, as one model: branch-train-merge, and c-BTM.

experts = load_experts(["runs/0", "runs/1"], by=Posterior())
print(experts.evaluate(0).loss, experts.generate("def "))
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from jaxtrain.cli.finished import FinishedRun, load_run
from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.generate import Sampling
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.shapes import ModelState
from jaxtrain.train.evaluation import HELD_OUT, Evaluation, evaluate
from jaxtrain.train.gates import Gate
from jaxtrain.train.gates.mixture import generate_mixed, make_mixture_step
from jaxtrain.train.initial.same_model import check_same_architecture, differences


class Experts(NamedTuple):
    """The models of runs of one architecture and tokenizer, and the gate that weights them for each token."""

    runs: tuple[FinishedRun, ...]
    gate: Gate

    def evaluate(self, of: int = 0, *, batches: int | None = None, on: str = HELD_OUT) -> Evaluation:
        """Evaluate the mixture on a validation set of run number `of`, as `FinishedRun.evaluate` does its own model."""
        run = self.runs[of]
        if on not in (sets := run.validation_sets):
            raise ValueError(f"{on=}: the run has no such validation set, but {', '.join(map(repr, sets))}")
        return evaluate(
            make_mixture_step(abstract_model(run.config.model).graph, self.gate),
            NextToken(),
            self._models,
            sets[on],
            batch_size=run.phase.batch_size,
            batches=batches,
            mesh=run.mesh,
        )

    def generate(
        self,
        prompt: str,
        *,
        tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> str:
        """Return a prompt and its continuation by the mixture, by up to `tokens` tokens."""
        if tokens < 1:
            raise ValueError(f"{tokens=}: must be at least 1")
        run = self.runs[0]
        tokenizer = run.data.tokenizer
        ids = tokenizer.encode_prompt(prompt)
        new = generate_mixed(
            abstract_model(run.config.model).graph,
            self._models,
            self.gate,
            ids,
            mesh=run.mesh,
            tokens=tokens,
            sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p),
            key=jax.random.key(seed),
            stop_token=tokenizer.end_of_document_id,
        )
        return tokenizer.decode(ids + new)

    @property
    def _models(self) -> tuple[ModelState, ...]:
        return tuple(run.model for run in self.runs)


def load_experts(folders: Sequence[str | Path], *, by: Gate, import_from: Sequence[str | Path] = ()) -> Experts:
    """Return runs as experts, in the order of their domains.

    Raises:
        ValueError: a folder has no run, two are not of one model and tokenizer, or the gate is of other experts.
    """
    if not folders:
        raise ValueError("folders=[]: name the run of one expert at least")
    runs = tuple(load_run(folder, import_from=import_from) for folder in folders)
    first = runs[0]
    for run in runs[1:]:
        path = str(run.folder.path)
        check_same_architecture(run.config.model, first.config.model, path=path, what="a run")
        for key, theirs, ours in differences(run.config.model, first.config.model, "model"):
            raise ValueError(f"{path}: {key}={theirs!r}, and {ours!r} in {first.folder.path}: experts are of one model")
        if run.config.model.trainable != first.config.model.trainable or run.config.model.teacher:
            raise ValueError(
                f"{path}: it trains other parameters than {first.folder.path}, or has a teacher: convert both"
            )
        if run.data.tokenizer.identity() != first.data.tokenizer.identity():
            raise ValueError(f"{path}: it has another tokenizer than {first.folder.path}: experts read the same tokens")
    if not first.data.examples.asks_for_next:
        raise ValueError(f"{first.folder.path}: data.examples={first.data.examples!r}: experts predict next tokens")
    by.check(len(runs), first.data.tokenizer.identity())
    return Experts(runs, by)
