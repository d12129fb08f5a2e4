"""`jaxtrain generate RUN --prompt TEXT ...`: continue prompts with a run's latest checkpoint."""

import argparse

import jax

from jaxtrain.cli.finished import open_run
from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.generate import Sampling, generate


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
