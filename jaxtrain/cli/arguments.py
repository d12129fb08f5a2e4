"""What each command takes on the command line: its arguments, their defaults and an example.

A command itself is the file of its name beside this one, with `run(arguments) -> exit code`. It is imported once its
arguments were read, because most import JAX, which takes seconds. Nothing here does.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jaxtrain.cli.config_imports import FLAG
from jaxtrain.cli.config_literal import number

if TYPE_CHECKING:
    from jaxtrain.pipeline.simulator import Costs

CONFIG = "a .gin file, a .py file with a function config(), or the folder of a run"
AVERAGE = "of a run, an average that it kept (ema, lawa); by default the weights themselves"


class Help(argparse.RawDescriptionHelpFormatter):
    """Shows defaults. Those that are no value (None, a flag that is off, an empty list) are said by the help text."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        unsaid = any(action.default is value for value in (None, False, argparse.SUPPRESS))
        if unsaid or isinstance(action.default, list) or not action.option_strings:
            return action.help
        return f"{action.help} (default: %(default)s)"


def described(help: str, example: str = "") -> dict:
    """Return the options of a parser whose help ends with an example."""
    epilog = f"example:\n  {example}" if example else None
    return {"help": help, "description": help, "epilog": epilog, "formatter_class": Help}


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help=CONFIG)
    parser.add_argument("--run", metavar="FOLDER", help="the run folder; runs/<name of the file> by default")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--allow-config-change", action="store_true", help="go on in the folder although its configuration differs"
    )
    mode.add_argument("--overwrite", action="store_true", help="remove the run that is in the folder and begin anew")
    parser.add_argument(
        "--profile", type=int, default=0, metavar="STEPS", help="trace so many steps into the folder's profile/"
    )
    help = "build everything and make one step of each phase on made-up tokens; read no text and write nothing"
    parser.add_argument("--dry-run", action="store_true", help=help)
    _add_set(parser)


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help=CONFIG)
    parser.add_argument("--rebuild", action="store_true", help="tokenise all text again, whatever is in the cache")
    parser.add_argument("--rows", type=int, default=2, help="rows of the first batch to print")
    _add_set(parser)


def _domains(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help=f"{CONFIG}: its data are read")
    parser.add_argument("file", type=Path, help="the file to write, which data.source=@Domain(...) and experts read")
    parser.add_argument("--number", type=int, required=True, help="domains, which have as many documents each")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other first centres")
    _add_set(parser)


def _eval(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--batches", type=int, help="validation batches to read; one whole pass by default")
    tasks = parser.add_argument_group("tasks of lm-eval, with the extra `eval`")
    help = "tasks to evaluate in place of the validation loss; none by default"
    tasks.add_argument("--tasks", metavar="NAME,...", help=help)
    help = "also read the task files (.yaml) of this folder, and run the Python code that they name; may be repeated"
    tasks.add_argument("--task-folder", action="append", default=[], metavar="FOLDER", help=help)
    help = "solved examples before each question; by default as many as the task says"
    tasks.add_argument("--shots", type=int, metavar="N", help=help)
    help = "the first questions of each task alone, to try it; all by default"
    tasks.add_argument("--limit", type=int, metavar="N", help=help)
    tasks.add_argument("--download", action="store_true", help="fetch data sets that are not on this machine")
    tasks.add_argument("--out", metavar="FILE", help="write all results there, as JSON; not by default")


def _generate(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    kind = parser.add_mutually_exclusive_group(required=True)
    help = "text to continue; give it again for a batch; none by default"
    kind.add_argument("--prompt", action="append", metavar="TEXT", help=help)
    kind.add_argument("--chat", action="store_true", help="answer each line of standard input, as the run's chats do")
    help = "with --chat: the system message that the chat begins with; none by default"
    parser.add_argument("--system", metavar="TEXT", help=help)
    help = "with --chat: a Jinja file to use; by default the run's template"
    parser.add_argument("--template", metavar="FILE", help=help)
    parser.add_argument("--tokens", type=int, default=200, help="the most tokens to write after each prompt")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token each time")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens; from all by default")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the likeliest tokens that hold P together; all by default"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, another text")


def _logits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a configuration with model.teacher and objective.top_k, or the folder of a run")
    parser.add_argument("folder", type=Path, help="a new folder, for the logits of all rows that the run takes")
    _add_set(parser)


def _convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a Hugging Face folder, the folder of a run, or an adapter")
    parser.add_argument("target", type=Path, help="the folder to make: the other kind, or with --task a run")
    help = "on export: the model_type of the family, such as llama; by default the first that expresses the model"
    parser.add_argument("--family", metavar="NAME", help=help)
    help = "on export: round the weights to it; by default they keep their bits"
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help=help)
    help = "of a run whose experts are chosen by task: make a run of the network of task N; by default all of it"
    parser.add_argument("--task", type=int, metavar="N", help=help)
    parser.add_argument("--adapter", action="store_true", help="convert adapters alone, in the files of peft")
    parser.add_argument(
        "--base", type=Path, metavar="RUN", help="for the import of an adapter: the run that it adapts; none by default"
    )
    parser.add_argument("--weights", metavar="NAME", help=AVERAGE)
    _add_step(parser)
    _add_set(parser)


def _merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("parents", nargs="+", metavar="RUN", help="runs of one architecture; the first is the base")
    help = "how, with its parameters, such as Assembly(weights=(0.5,0.5)); docs/experts.md lists what there is"
    parser.add_argument("--by", required=True, metavar="MERGE", help=help)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder, for the run to make")
    _add_import(parser)


def _average(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="the folder of a run that keeps several checkpoints")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--window", type=int, default=2, metavar="K", help="the last K checkpoints")
    which.add_argument(
        "--steps", type=int, nargs="+", metavar="STEP", help="the checkpoints of these steps; by default the last"
    )
    help = "coefficients of an exponential moving average over the checkpoints; by default they are equal"
    parser.add_argument("--decay", type=float, metavar="D", help=help)
    help = "try N combinations, and take the one with the lowest validation loss; none by default"
    parser.add_argument("--search", type=int, metavar="N", help=help)
    help = "in a search, evaluate on so many batches; by default on the whole validation set"
    parser.add_argument("--batches", type=int, help=help)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder, for the run to make")
    _add_import(parser)


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help=CONFIG)
    _add_set(parser)


def _compile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help=CONFIG)
    parser.add_argument("--topology", required=True, help="v5e:4x4, v5p:4x4x4, h100:2x8 (servers x GPUs), ...")
    parser.add_argument("--rows", type=int, default=12, help="rows of the table of collectives")
    _add_set(parser)


def _sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help=CONFIG)
    help = "a key and its values, e.g. optimizer.learning_rate.peak=1e-3,3e-3; give it again for another key"
    parser.add_argument("--grid", action="append", required=True, metavar="KEY=A,B", help=help)
    help = "the folder of all runs; runs/<name of the file>-sweep by default"
    parser.add_argument("--folder", metavar="FOLDER", help=help)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--print", action="store_true", help="print the commands, one a line, and train nothing")
    help = "train all at once by one program, each on its share of the devices: runs that differ in data or seed alone"
    mode.add_argument("--together", action="store_true", help=help)
    _add_set(parser)


def _plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run")
    help = "the picture to write; by default plot.png in the run, and for several runs A+B.png beside them"
    parser.add_argument("--out", metavar="FILE", help=help)
    help = "draw where tokens went in a mixture of experts, which the hook RouterReport counts; by default experts.png"
    parser.add_argument("--experts", action="store_true", help=help)


def _schedule(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="show|compare")
    show = actions.add_parser(
        "show",
        **described(
            "draw one schedule and print its figures", "jaxtrain schedule show ZBH1 --stages 4 --microbatches 8"
        ),
    )
    show.add_argument("schedule", help="a schedule, as `ZBH1` or `Interleaved(chunks_per_stage=3)`, or a table file")
    show.add_argument(
        "--mode", choices=("free", "tick"), default="free", help="each stage on its own, or one compiled loop"
    )
    show.add_argument("--png", type=Path, metavar="FILE", help="write a picture; none by default")
    show.add_argument("--svg", type=Path, metavar="FILE", help="write a picture; none by default")
    show.add_argument(
        "--save", type=Path, metavar="FILE", help="write the table as text, to edit and show again; not by default"
    )
    _add_size_and_costs(show, required=False)
    compare = actions.add_parser(
        "compare", **described("schedules in one table", "jaxtrain schedule compare --stages 8 --microbatches 32")
    )
    compare.add_argument("schedules", nargs="*", metavar="schedule", help="schedules or table files; all by default")
    _add_size_and_costs(compare, required=True)


def _tokenizer(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="train")
    example = "jaxtrain tokenizer train configs/quickstart.gin --vocab-size 4096 --out tokenizer.json"
    train = actions.add_parser("train", **described("learn a vocabulary", example))
    train.add_argument("config", nargs="?", help="a .gin or .py file, whose data is read")
    train.add_argument("--text", metavar="GLOB", help="text files to read; by default the data of the configuration")
    train.add_argument(
        "--vocab-size", type=int, required=True, help="tokens, the bytes and the end of document included"
    )
    train.add_argument("--out", required=True, metavar="FILE", help="the tokenizers JSON file to write")
    _add_set(train)


def _config(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="show|diff|options")
    help = "print every key with its value and where that came from"
    show = actions.add_parser("show", **described(help, "jaxtrain config show configs/quickstart.gin"))
    show.add_argument("file", help=CONFIG)
    _add_set(show)
    help, example = "print the keys in which two differ", "jaxtrain config diff configs/quickstart.gin runs/quickstart"
    diff = actions.add_parser("diff", **described(help, example))
    diff.add_argument("left", metavar="A", help=CONFIG)
    diff.add_argument("right", metavar="B", help=f"{CONFIG}; --set changes this one")
    _add_set(diff)
    help = "print what a key takes: classes, with their papers, or a plain type"
    options = actions.add_parser("options", **described(help, "jaxtrain config options model.pattern.mixer"))
    help = "such as optimizer, model.pattern.mixer, gradients.schedule; by default those at the root are listed"
    options.add_argument("key", nargs="?", help=help)


class Command(NamedTuple):
    help: str
    add: Callable[[argparse.ArgumentParser], None]
    example: str = ""  # where a command has actions, each of them has one


COMMANDS = {
    "train": Command(
        "train, or resume, the run that a configuration describes",
        _train,
        "jaxtrain train configs/quickstart.gin --run runs/mine --set phases.0.steps=200",
    ),
    "data": Command(
        "prepare the data of a configuration, and show what a run reads of it",
        _data,
        "jaxtrain data configs/quickstart.gin --rows 4",
    ),
    "domains": Command(
        "find the domains of a text without labels, for experts that each learn one",
        _domains,
        "jaxtrain domains configs/quickstart.gin domains.npz --number 4",
    ),
    "eval": Command(
        "evaluate a run's checkpoint on its validation data", _eval, "jaxtrain eval runs/quickstart --batches 10"
    ),
    "generate": Command(
        "continue prompts with a run's model",
        _generate,
        'jaxtrain generate runs/quickstart --prompt "def " --prompt "import " --temperature 0.5',
    ),
    "logits": Command(
        "store what a teacher says of the rows of a run, for students to train without it",
        _logits,
        "jaxtrain logits configs/distill_tiny.gin logits/quickstart --set objective.top_k=16",
    ),
    "convert": Command(
        "import weights from Hugging Face safetensors, or export to them",
        _convert,
        "jaxtrain convert runs/quickstart exported --dtype bfloat16",
    ),
    "merge": Command(
        "make a run of the weights of several, without training",
        _merge,
        'jaxtrain merge runs/a runs/b --by "Assembly(weights=(0.5,0.5))" --out runs/between',
    ),
    "average": Command(
        "make a run of a linear combination of a run's checkpoints",
        _average,
        "jaxtrain average runs/quickstart --window 2 --out runs/averaged",
    ),
    "compile": Command(
        "compile the train step ahead of time for a TPU or GPU topology: memory and collectives",
        _compile,
        "jaxtrain compile configs/llama2_7b.gin --topology v5e:4x4",
    ),
    "sweep": Command(
        "train a configuration once for every combination of some keys' values, and compare the results",
        _sweep,
        "jaxtrain sweep configs/quickstart.gin --grid optimizer.learning_rate.peak=1e-3,3e-3 --grid seed=0,1",
    ),
    "model": Command(
        "describe a configuration's model: layers, shapes, parameters, FLOPs, memory of the state",
        _model,
        "jaxtrain model configs/quickstart.gin --set model.repeats=8",
    ),
    "plot": Command(
        "draw loss, learning rate, gradient norm and throughput of runs",
        _plot,
        "jaxtrain plot runs/quickstart --out loss.png",
    ),
    "schedule": Command("schedule show, schedule compare: look at pipeline schedules", _schedule),
    "tokenizer": Command("tokenizer train: make a tokenizer from text files", _tokenizer),
    "config": Command("config show, config diff, config options: look at configurations", _config),
}


def _add_set(parser: argparse.ArgumentParser) -> None:
    """Add `--set` and `--import-from` to a command that loads a configuration. Their values are lists."""
    help = "change one key by its place in the tree, e.g. model.d_model=512 or optimizer='@Lion()'; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help=help)
    _add_import(parser)


def _add_import(parser: argparse.ArgumentParser) -> None:
    help = "let the configuration run Python modules of this folder, not only of installed packages; may be repeated"
    parser.add_argument(FLAG, action="append", default=[], metavar="FOLDER", help=help)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="the folder of a run")
    parser.add_argument("--weights", metavar="NAME", help=AVERAGE)
    _add_step(parser)
    _add_set(parser)


def _add_step(parser: argparse.ArgumentParser) -> None:
    """Add `--step` and `--best`, which choose a checkpoint."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="of a run, the checkpoint of this step; the latest by default")
    help = "of a run, the checkpoint with the lowest validation loss at its step, in the last phase that measured it"
    which.add_argument("--best", action="store_true", help=help)


def _add_size_and_costs(parser: argparse.ArgumentParser, *, required: bool) -> None:
    own = "" if required else "; by default those of a table file"
    parser.add_argument("--stages", type=int, required=required, help=f"pipeline stages{own}")
    parser.add_argument("--microbatches", type=int, required=required, help=f"microbatches of a step{own}")
    help = "most microbatches' activations that a stage may hold; any number by default"
    parser.add_argument("--memory-limit", type=_memory_limit, metavar="LIMIT", help=help)
    costs = parser.add_mutually_exclusive_group()
    help = "time of F, B and W on a whole stage, and of a transfer; 1,1,1,0 by default"
    costs.add_argument("--costs", type=_costs, metavar="F,B,W[,TRANSFER]", help=help)
    costs.add_argument(
        "--model", metavar="CONFIG", help=f"take the costs from the FLOPs of the model of {CONFIG}; by default --costs"
    )
    _add_import(parser)


def _memory_limit(text: str) -> float:
    try:
        limit = number(text)
    except ValueError:
        limit = math.nan
    if not limit > 0:
        raise argparse.ArgumentTypeError(f"`{text}` must be a number above 0, such as 4; leave it out for no limit")
    return limit


def _costs(text: str) -> "Costs":
    from jaxtrain.pipeline.simulator import Costs

    try:
        forward, backward, weight, *rest = [number(word) for word in text.split(",")]
        (transfer,) = rest or [0.0]
        return Costs(forward=forward, backward=backward, weight=weight, transfer=transfer)
    except ValueError:
        rule = "must be three or four numbers, such as 1,1.4,0.6: F, B and W above 0, and a transfer, all finite"
        raise argparse.ArgumentTypeError(f"`{text}` {rule}") from None
