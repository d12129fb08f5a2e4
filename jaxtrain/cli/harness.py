"""A run's model as lm-eval asks for one: log-likelihoods, rolling log-likelihoods, generation until a stop text.

The EleutherAI Language Model Evaluation Harness, Gao et al. (2021), doi:10.5281/zenodo.5371628. lm-eval makes the
requests and the metrics; prompts are encoded as documents of training are. Left out: chat templates, and the sampling
options of `transformers` that `Sampling` lacks. Every process of a run makes all requests and gets all answers;
requests that differ are refused.
"""

import sys
import zlib
from collections.abc import Sequence
from typing import Any

import jax
from lm_eval import utils  # type: ignore[import-not-found]  # an extra, which may not be installed
from lm_eval.api.model import TemplateLM  # type: ignore[import-not-found]
from lm_eval.models.utils import normalize_gen_kwargs  # type: ignore[import-not-found]
from rich.console import Console
from rich.progress import track

from jaxtrain.cli.finished import FinishedRun
from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.generate import Sampling
from jaxtrain.train import distributed
from jaxtrain.train.scoring import Request, Scored, make_scoring_step, score, truncated
from jaxtrain.train.until import generate_until

SAMPLING = ("temperature", "top_k", "top_p")


class RunModel(TemplateLM):
    """What lm-eval calls, on the mesh of a run."""

    def __init__(self, finished: FinishedRun):
        super().__init__()
        self._run, self._graph = finished, abstract_model(finished.config.model).graph
        self._step = make_scoring_step(self._graph)
        self._phase = finished.config.phases[-1]
        self._tokenizer = (self._phase.data or finished.config.data).tokenizer
        self.max_length = finished.config.model.max_length
        self.max_gen_toks = 256  # of tasks that do not say

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.end_of_document_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context: the one that begins documents, or else the one that ends them."""
        return self._tokenizer.beginning[-1] if self._tokenizer.beginning else self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Return the ids of a text, as of a prompt unless `add_special_tokens` is False."""
        whole = add_special_tokens is None or add_special_tokens
        return self._tokenizer.encode_prompt(string) if whole else self._tokenizer.encode(string).tolist()

    def loglikelihood_rolling(self, requests: Sequence, disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of every text, of which each token is predicted once, in windows of the context."""
        _check_same([request.args for request in requests])
        windows = [self._windows(request.args[0]) for request in requests]
        flat = iter(self._score([window for of_text in windows for window in of_text]))
        sums = [sum(next(flat).log_likelihood for _ in of_text) for of_text in windows]
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def _windows(self, text: str) -> list[Request]:
        windows = utils.get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [Request(*utils.make_disjoint_window(window)) for window in windows]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_
    ) -> list[tuple[float, bool]]:
        _check_same(requests)
        asked = [Request(context, continuation) for _, context, continuation in requests]
        if cut := truncated(asked, self._run.config.model):
            self._note(f"{cut} of {len(asked)} requests exceed the context of {self.max_length} and lose its beginning")
        scores = [(found.log_likelihood, found.greedy) for found in self._score(asked)]
        for request, found in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", request[0], found)
        return scores

    def _score(self, requests: Sequence[Request]) -> list[Scored]:
        return score(
            self._step,
            self._run.model,
            requests,
            config=self._run.config.model,
            batch_size=self._phase.batch_size,
            sequence_length=self._phase.sequence_length,
            mesh=self._run.mesh,
            track=self._track("log-likelihoods"),
        )

    def generate_until(self, requests: Sequence, disable_tqdm: bool = False) -> list[str]:
        """Return a text for every request. Those with the same options share batches."""
        _check_same([request.args for request in requests])
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(index)
        texts: dict[int, str] = {}
        for indices in alike.values():
            prompts = [self.tok_encode(requests[index].args[0]) for index in indices]
            written = self._generate(prompts, requests[indices[0]].args[1])
            texts.update(zip(indices, written, strict=True))
        for number, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, texts[number])
        return [texts[index] for index in range(len(requests))]

    def _generate(self, prompts: list[list[int]], options: dict[str, Any]) -> list[str]:
        kwargs = dict(normalize_gen_kwargs(options, self.max_gen_toks))
        stops, tokens, draws = kwargs.pop("until"), kwargs.pop("max_gen_toks"), kwargs.pop("do_sample", False)
        chosen = {name: kwargs.pop(name) for name in SAMPLING if name in kwargs}
        if kwargs:
            raise NotImplementedError(
                f"generation_kwargs {', '.join(map(repr, kwargs))}: of the options of a task, until, max_gen_toks, "
                f"do_sample, {', '.join(SAMPLING)} are supported; change its file"
            )
        cut = sum(len(prompt) > self.max_length - tokens for prompt in prompts)
        if cut:
            self._note(
                f"{cut} of {len(prompts)} prompts leave no room for {tokens} tokens in the context of "
                f"{self.max_length} and lose their beginning"
            )
        return generate_until(
            self._graph,
            self._run.model,
            prompts,
            tokenizer=self._tokenizer,
            stops=stops,
            tokens=tokens,
            max_length=self.max_length,
            sampling=Sampling(**chosen) if draws else Sampling(temperature=0.0),
            batch_size=self._phase.batch_size,
            mesh=self._run.mesh,
            track=self._track("generation"),
        )

    def _note(self, text: str) -> None:
        if jax.process_index() == 0:
            print(f"jaxtrain: note: {text}", file=sys.stderr)

    def _track(self, what: str):
        """Return what shows the progress over batches on stderr, from the first process and on a terminal."""
        console = Console(stderr=True)
        hidden = jax.process_index() != 0 or not console.is_terminal
        return lambda batches: track(batches, what, console=console, transient=True, disable=hidden)


def _check_same(requests: Sequence) -> None:
    """Raise ValueError where processes have other requests than each other: they would put them into one batch."""
    if not distributed.same(zlib.crc32(repr(requests).encode()) >> 1):
        raise ValueError(
            "the tasks ask the processes of this run different questions: give all machines the same data sets and the "
            "same lm-eval"
        )
