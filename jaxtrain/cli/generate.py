"""`jaxtrain generate RUN --prompt TEXT ...`: continue prompts with a run's latest checkpoint."""

import argparse

import jax

from jaxtrain.cli.finished import add_run_arguments, open_run
from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.generate import Sampling, generate


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
    sampling = Sampling(temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p)
    finished = open_run(arguments)
    tokenizer = (finished.config.phases[-1].data or finished.config.data).tokenizer
    prompts = [tokenizer.encode_prompt(prompt) for prompt in arguments.prompt]
    graph = abstract_model(finished.config.model).graph
    with jax.set_mesh(finished.mesh):
        written = generate(
            graph,
            finished.model,
            prompts,
            tokens=arguments.tokens,
            sampling=sampling,
            key=jax.random.key(arguments.seed),
            stop_token=tokenizer.end_of_document_id,
        )
    for number, (prompt, new) in enumerate(zip(prompts, written, strict=True)):
        if number:
            print("-" * 40)
        print(tokenizer.decode(prompt + new))
    return 0
