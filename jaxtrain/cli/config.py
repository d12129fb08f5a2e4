"""`jaxtrain config show FILE`, `jaxtrain config diff A B` and `jaxtrain config options KEY`."""

import argparse

from rich.console import Console

from jaxtrain.cli.config_file import load
from jaxtrain.cli.config_options import describe_options
from jaxtrain.cli.config_text import show
from jaxtrain.record.files import RunFiles, differences


def run(arguments: argparse.Namespace) -> int:
    console = Console(highlight=False, markup=False, emoji=False)
    if arguments.action == "show":
        loaded = load(arguments.file, arguments.set, import_from=arguments.import_from)
        console.print(show(loaded), soft_wrap=True)
    elif arguments.action == "options":
        console.print(describe_options(arguments.key), soft_wrap=True)
    else:
        left = load(arguments.left, import_from=arguments.import_from)
        right = load(arguments.right, arguments.set, import_from=arguments.import_from)
        found = differences(RunFiles.of(left.config), RunFiles.of(right.config))
        console.print("\n".join(map(str, found)) or "no differences", soft_wrap=True)
    return 0
