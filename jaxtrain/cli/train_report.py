"""What `jaxtrain train` says: sizes and notes before the first step, the result and what is next after the last."""

import shlex
from collections.abc import Sequence

import jax
from rich.console import Console

from jaxtrain.cli.chat_template import has_chats
from jaxtrain.cli.example_prompt import example_prompt
from jaxtrain.cli.moved_rate import another_phase, longer_phase
from jaxtrain.config import TrainConfig
from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.models.generate import check_decoding
from jaxtrain.record.files import remarks
from jaxtrain.train.evaluation import Evaluation, described
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.loop import Result


def describe(config: TrainConfig, folder: RunFolder, console: Console) -> None:
    phase = config.phases[0]
    console.print(
        f"{config.model.parameter_count:,} parameters, {sum(p.steps for p in config.phases):,} steps of "
        f"{phase.batch_size} x {phase.sequence_length} tokens on {jax.device_count()} {jax.devices()[0].device_kind}, "
        f"into {folder.path}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    for remark in [*config.remarks(jax.device_count()), *remarks(folder, config)]:
        console.print(f"note: {remark}", highlight=False, markup=False, soft_wrap=True)


def conclude(
    result: Result,
    config: TrainConfig,
    folder: RunFolder,
    bigram: float | None,
    seconds: float,
    console: Console,
    import_from: Sequence[str],
) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    if not result.finished:
        say(f"stopped by a signal after step {result.step}, saved. The same command goes on from there.")
        return
    loss = result.numbers.get("validation_loss")
    if loss is not None:
        found = Evaluation(loss, result.numbers["validation_weight"])
        say(f"validation loss {described(found)}")
    if loss is not None and bigram is not None:
        say(f"a bigram model counted on the same training split: {bigram:.4f}")
    path = shlex.quote(str(folder.path))
    trusted = "".join(f" --import-from {shlex.quote(name)}" for name in import_from)
    if result.numbers:
        say(f"trained to step {result.step} in {seconds:.0f} s; the run is in {folder.path}")
    elif result.ended:
        change = "change the hook that ended it, and pass --allow-config-change"
        say(f"to train longer, {change}; its keys: jaxtrain config show {path}")
    else:
        command = f"jaxtrain train {path}{trusted} --allow-config-change"
        say(f"to train longer, with the schedule spread over all steps: {command} {longer_phase(config)}")
        if at_its_rate := another_phase(config, config.phases[-1].steps):
            say(f"or at the learning rate that it ended with: {command} {at_its_rate}")
    if generates(config.model):
        asked = "--chat" if has_chats(config) else f"--prompt {shlex.quote(example_prompt(config))}"
        say(f"next: jaxtrain generate {path}{trusted} {asked}")
        say(f"      jaxtrain eval {path}{trusted}")
    else:
        say(f"next: jaxtrain eval {path}{trusted}")
    if config.model.task_count is not None:
        say(f"      jaxtrain convert {path} {shlex.quote(f'{folder.path}_task0')} --task 0{trusted}")
    say(f"      jaxtrain plot {path}")
    if folder.routing_files():
        say(f"      jaxtrain plot {path} --experts")


def generates(model: DecoderConfig) -> bool:
    """Tell whether a model can continue a prompt."""
    try:
        check_decoding(model, shortest=1, longest=1, tokens=1)
    except ValueError:
        return False
    return model.causal
