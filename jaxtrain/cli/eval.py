"""`jaxtrain eval RUN`: the validation loss of a run's latest checkpoint."""

import argparse

from jaxtrain.cli.finished import add_run_arguments, open_run
from jaxtrain.train.evaluation import perplexity


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument("--batches", type=int, help="validation batches to read; one whole pass by default")


def run(arguments: argparse.Namespace) -> int:
    if arguments.batches is not None and arguments.batches < 1:
        raise ValueError(f"--batches={arguments.batches}: must be at least 1")
    finished = open_run(arguments)
    loss, tokens = finished.evaluate(batches=arguments.batches)
    print(
        f"step {finished.step}: validation loss {loss:.4f} nats a token, perplexity {perplexity(loss):.2f}, "
        f"over {tokens:,.0f} tokens"
    )
    return 0
