"""Finished runs, from Python.

run = load_run("runs/quickstart")
print(run.generate("def "))
print(run.evaluate().loss)
"""

from jaxtrain.cli.experts import Experts, load_experts
from jaxtrain.cli.finished import FinishedRun, load_run

__all__ = ["Experts", "FinishedRun", "load_experts", "load_run"]
