"""`jaxtrain eval RUN`: the validation loss of a run's latest checkpoint, or tasks of lm-eval (eval_tasks.py)."""

import argparse

import jax

from jaxtrain.cli.eval_tasks import check_task_arguments, run_tasks
from jaxtrain.cli.finished import open_run
from jaxtrain.models.decoder import abstract_model
from jaxtrain.train.evaluation import evaluate, perplexity, validation_rows
from jaxtrain.train.needs import check_evaluation
from jaxtrain.train.step import make_evaluation_step


def run(arguments: argparse.Namespace) -> int:
    if arguments.batches is not None and arguments.batches < 1:
        raise ValueError(f"--batches={arguments.batches}: must be at least 1")
    check_task_arguments(arguments)
    if arguments.tasks is not None:
        return run_tasks(arguments)
    finished = open_run(arguments)
    config, phase = finished.config, finished.config.phases[-1]
    check_evaluation(config.model, phase, jax.devices())
    graph = abstract_model(config.model).graph
    loss, tokens = evaluate(
        make_evaluation_step(graph, config.objective),
        config.objective,
        finished.model,
        validation_rows(phase.data or config.data, sequence_length=phase.sequence_length),
        batch_size=phase.batch_size,
        batches=arguments.batches,
        mesh=finished.mesh,
    )
    print(
        f"step {finished.step}: validation loss {loss:.4f} nats a token, perplexity {perplexity(loss):.2f}, "
        f"over {tokens:,.0f} tokens"
    )
    return 0
