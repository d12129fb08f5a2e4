"""`jaxtrain generate RUN --prompt TEXT ...`: continue prompts with a run's latest checkpoint."""

import argparse

from jaxtrain.cli.finished import open_run
from jaxtrain.models.generate import Sampling


def run(arguments: argparse.Namespace) -> int:
    if arguments.tokens < 1:
        raise ValueError(f"--tokens={arguments.tokens}: must be at least 1")
    if not 0 <= arguments.seed < 2**63:
        raise ValueError(f"--seed={arguments.seed}: must be from 0 to 2^63 - 1")
    Sampling(temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p)
    written = open_run(arguments).continuations(
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
