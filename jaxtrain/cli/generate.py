"""`jaxtrain generate RUN --prompt TEXT ...`: continue prompts with a run's latest checkpoint, or talk (--chat)."""

import argparse
import sys

import jax

from jaxtrain.cli.chat import lines_of, talk
from jaxtrain.cli.chat_template import last_data, template_of
from jaxtrain.cli.finished import FinishedRun, add_run_arguments, open_run
from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.generate import Sampling, generate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--prompt", action="append", metavar="TEXT", help="text to continue; give it again for a batch")
    kind.add_argument("--chat", action="store_true", help="answer each line of standard input, as the run's chats do")
    parser.add_argument("--system", metavar="TEXT", help="with --chat: the system message that the chat begins with")
    parser.add_argument("--template", metavar="FILE", help="with --chat: a Jinja file in place of the run's template")
    parser.add_argument("--tokens", type=int, default=200, help="the most tokens to write after each prompt")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token each time")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens only")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest tokens that hold P together")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another text")


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
    tokenizer = last_data(finished.config).tokenizer
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
