"""`jaxtrain config show FILE`, `jaxtrain config diff A B` and `jaxtrain config options KEY`."""

import argparse

from rich.console import Console

from jaxtrain.cli.config_file import load
from jaxtrain.cli.config_options import describe_options
from jaxtrain.cli.config_override import add_set_argument
from jaxtrain.cli.config_text import show
from jaxtrain.record.files import RunFiles, differences


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="show|diff|options")
    listing = actions.add_parser("show", help="print every key with its value and where that came from")
    listing.add_argument("file", help="a .gin or .py file, or a run folder")
    add_set_argument(listing)
    comparison = actions.add_parser("diff", help="print the keys in which two configurations differ")
    comparison.add_argument("left", metavar="A", help="a .gin or .py file, or a run folder")
    comparison.add_argument("right", metavar="B", help="a .gin or .py file, or a run folder; --set changes this one")
    add_set_argument(comparison)
    catalog = actions.add_parser("options", help="print what a key takes: classes, with their papers, or a plain type")
    catalog.add_argument("key", nargs="?", help="such as optimizer, model.pattern.mixer, gradients.schedule; or none")


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
