"""`jaxtrain generate RUN --prompt TEXT ...`: continue prompts with a run's latest checkpoint."""

import argparse

from jaxtrain.cli.finished import add_run_arguments, open_run
from jaxtrain.models.generate import Sampling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument(
        "--prompt", action="append", required=True, metavar="TEXT", help="text to continue; give it again for a batch"
    )
    parser.add_argument("--tokens", type=int, default=200, help="tokens to write after each prompt")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token each time")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens only")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest tokens that hold P together")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another text")


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
