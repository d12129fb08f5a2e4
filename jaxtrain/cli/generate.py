"""`jaxtrain generate RUN --prompt TEXT ...`: continue prompts with a run's latest checkpoint, or talk (--chat)."""

import argparse
import sys

import jax

from jaxtrain.cli.chat import lines_of, talk
from jaxtrain.cli.chat_template import template_of
from jaxtrain.cli.finished import FinishedRun, open_run
from jaxtrain.models.generate import Sampling


def run(arguments: argparse.Namespace) -> int:
    if arguments.tokens < 1:
        raise ValueError(f"--tokens={arguments.tokens}: must be at least 1")
    if not 0 <= arguments.seed < 2**63:
        raise ValueError(f"--seed={arguments.seed}: must be from 0 to 2^63 - 1")
    if not arguments.chat and (arguments.system or arguments.template):
        raise ValueError("--system and --template are for --chat: add it, or leave them out")
    sampling = Sampling(temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p)
    finished = open_run(arguments)
    if arguments.chat:
        return chat(finished, arguments, sampling)
    written = finished.continuations(
        arguments.prompt,
        tokens=arguments.tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    for number, text in enumerate(written):
        if number:
            print("-" * 40)
        print(text)
    return 0


def chat(finished: FinishedRun, arguments: argparse.Namespace, sampling: Sampling) -> int:
    if jax.process_count() > 1:
        raise NotImplementedError("--chat reads standard input, which one process has: run it without the others")
    template = template_of(finished.config, finished.folder, arguments.template)
    with jax.set_mesh(finished.mesh):
        talk(
            finished,
            template,
            lines_of(sys.stdin),
            system=arguments.system,
            tokens=arguments.tokens,
            sampling=sampling,
            seed=arguments.seed,
        )
    return 0
