"""Configuration files, overrides and schedules named in text.

Silently wrong: a line that binds a value is in force nowhere, or with another value than it says; an override likewise;
or the configuration, written and read again, is another.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from random import Random

from fuzzed import mutations
from fuzzed.case import Case
from fuzzed.readings import ABSENT, literal, says
from jaxtrain.cli.config_file import LoadedConfig, load
from jaxtrain.cli.schedule_catalog import parse
from jaxtrain.record.text import render
from jaxtrain.record.walk import entries

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = ("quickstart.gin", "pipeline_tiny.gin", "hybrid_tiny.gin", "adam8bit_tiny.gin")
BINDING = re.compile(r"^\s*(?:[\w./]*\.)?(\w+)\s*=\s*(.+)$")
PATHS = (
    "model.d_model", "model.repeats", "model.norm.epsilon", "model.pattern[0].mixer.heads", "model.head",
    "model.compute_dtype", "phases[0].steps", "phases.0.sequence_length", "optimizer.learning_rate.peak", "clip_norm",
    "optimizer.b2", "hooks[1].prompt", "hooks", "phases", "optimizer", "model", "seed", "mesh.fsdp", "data.source",
)  # fmt: skip
VALUES = (
    "7", "0.25", "1e-3", "None", "'text'", "text", "a b", "@Lion()", "@AdamW(b1=0.5)", "@Lion(b1=1e999)",
    "(@Phase(steps=2,batch_size=8,sequence_length=8),)", "@TextFiles(glob='*')", "@ByteTokenizer()", "@Muon(",
    "@jaxtrain.models.presets.gpt2()", "@jaxtrain.optim.lion.Lion()", "(1, 2)", "[]", "@Lion(b1=@Lion())",
)  # fmt: skip
STRANGE_PATHS = (
    "", ".", "..", "...", "[0]", "phases[]", "phases[-1].steps", "phases[99999999999999999999].steps", "phases[0",
    "phases[0]]", "phases[²].steps", "phases.²", "phases.٣.steps", "phases.0.0", "phases[0][0]", "model.", ".model",
    "model..d_model", "@", "%", "=", "Model", "A.B.C", "TrainConfig", "DecoderConfig.٣.²", "Phase.²", "é", "\ud800",
    "__class__", "model.__class__", "model.layers", "model.parameter_count", "phases." + "0." * 2000 + "steps",
    "phases[" + "9" * 5000 + "].steps", "phases." + "9" * 5000, "Phase." + "9" * 5000, "model\0", "a b", "model d",
)  # fmt: skip
SCHEDULES = (
    "PairedInterleaved", "Interleaved(chunks_per_stage=3)", "Hanayo(waves=2)", "ZBSearch(memory_limit=4, weight=0.6)",
    "TwoBP(schedule=GPipe())", "TwoBP(schedule=ZBSearch(transfer=1e-2))", "FromFile(path='a.txt')",
)  # fmt: skip


def gin_files(random: Random, folder: Path) -> Iterator[Case]:
    path = folder / "run.gin"
    for name in FILES:
        yield _gin_file(path, f"{name}, valid", (CONFIGS / name).read_text(), valid=True)
    (folder / "base.gin").write_text((CONFIGS / "base.gin").read_text())
    while True:
        name = random.choice(FILES)
        damage = random.choice((mutations.text, mutations.word))
        what, text = damage(random, (CONFIGS / name).read_text())
        yield _gin_file(path, f"{name}, {what}", text)


def _gin_file(path: Path, what: str, text: str, *, valid: bool = False) -> Case:
    def attempt() -> LoadedConfig:
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        return load(path)

    return Case(
        "gin file", what, attempt, lambda loaded: _unheard(path, text, loaded) or _changes(loaded), (".gin",), valid
    )


def _unheard(path: Path, text: str, loaded: LoadedConfig) -> str | None:
    """A line that binds a literal, and no key has it."""
    config = dict(entries(loaded.config))
    for number, line in enumerate(re.split("\r\n?|\n", text), start=1):
        found = BINDING.match(line)
        if line.lstrip().startswith("#") or not found or literal(found[2]) is ABSENT:
            continue
        made = [key for key, origin in loaded.origins.items() if origin == f"{path}:{number}"]
        named = [key for key in made if re.split(r"[.\]]", key)[-1] == found[1] and key in config]
        if not any(says(found[2], config[key]) for key in named):
            return f"line {number}, {line!r}, is in force as { {key: config.get(key) for key in named or made} }"
    return None


def _changes(loaded: LoadedConfig) -> str | None:
    """Whether the file that a run keeps is another configuration."""
    kept = Path(loaded.origins[""].rpartition(":")[0] or loaded.origins[""]).with_name("kept.gin")
    try:
        kept.write_text(render(loaded.config), encoding="utf-8")
    except ValueError as error:
        return f"accepted, and cannot be kept: {error}"
    return None if load(kept).config == loaded.config else "written and read again it is another configuration"


def overrides(random: Random, folder: Path) -> Iterator[Case]:
    path = folder / "run.gin"
    path.write_text((CONFIGS / "quickstart.gin").read_text())
    (folder / "base.gin").write_text((CONFIGS / "base.gin").read_text())
    yield _override(path, "model.d_model=64", valid=True)
    for strange in STRANGE_PATHS:
        yield _override(path, f"{strange}={random.choice(VALUES)}")
    for word in mutations.WORDS:
        yield _override(path, f"clip_norm={word}")
    while True:
        key, value = random.choice(PATHS), random.choice(VALUES + mutations.WORDS)
        override = f"{key}={value}"
        if random.random() < 0.5:
            override = random.choice((mutations.text, mutations.word))(random, override).content
        yield _override(path, override)


def _override(path: Path, override: str, *, valid: bool = False) -> Case:
    def fault(loaded: LoadedConfig) -> str | None:
        return _not_in_force(override, loaded) or _changes(loaded)

    key = re.split(r"[.\]=]", override.partition("=")[0].strip())[-1]
    names = ("--set", *([key] if key else []))
    return Case("override", _short(override), lambda: load(path, [override]), fault, names, valid)


def _not_in_force(override: str, loaded: LoadedConfig) -> str | None:
    key, _, text = (part.strip() for part in override.partition("="))
    key = re.sub(r"\.(\d+)", r"[\1]", key)
    if loaded.origins.get(key) != "--set":
        return "accepted without a key that has it"
    value = _at(loaded.config, key)
    if text.lstrip("([ ").startswith("@"):
        return None if _is_called(text, value) else f"the key holds {value!r}"
    if is_dataclass(value):
        return None if _is_schedule(ast.parse(text, mode="eval").body, text, value) else f"the key holds {value!r}"
    heard = says(text, value) if literal(text) is not ABSENT and not isinstance(value, str) else None
    heard = heard if heard is not None else value in (text, _text_of(text))
    return None if heard else f"the key holds {value!r}"


def _at(config: object, key: str) -> object:
    for part in re.findall(r"[^.\[\]]+", key):
        config = config[int(part)] if part.isdecimal() else getattr(config, part)
    return config


def _text_of(text: str) -> object:
    return ast.literal_eval(text) if literal(text) is not ABSENT else ABSENT


def _is_called(text: str, value: object) -> bool:
    """Whether a value has the class, or the function made it, and the keys, that `@Name(key=value)` names."""
    expression = ast.parse(text.replace("@", ""), mode="eval").body
    return _matches(expression, value)


def _matches(expression: ast.expr, value: object) -> bool:
    match expression:
        case ast.Tuple() | ast.List():
            pairs = zip(expression.elts, value, strict=True)
            return all(_matches(item, own) for item, own in pairs)
        case ast.Call():
            name = ast.unparse(expression.func).rpartition(".")[2]
            given = {keyword.arg: keyword.value for keyword in expression.keywords}
            right = name[:1].islower() or type(value).__name__ == name
            return right and all(_matches(item, getattr(value, key)) for key, item in given.items())
        case ast.Name():
            return value == expression.id
    return says(ast.unparse(expression), value)


def schedules(random: Random, folder: Path) -> Iterator[Case]:
    for text in SCHEDULES:
        yield _schedule(text, valid=True)
    while True:
        yield _schedule(random.choice((mutations.text, mutations.word))(random, random.choice(SCHEDULES)).content)


def _schedule(text: str, *, valid: bool = False) -> Case:
    def fault(schedule: object) -> str | None:
        try:
            expression = ast.parse(text.replace("@", "").strip(), mode="eval").body
        except (SyntaxError, ValueError):
            return f"read as {schedule!r}"
        return None if _is_schedule(expression, text, schedule) else f"read as {schedule!r}"

    return Case("schedule", _short(text), lambda: parse(text), fault, ("",), valid)


def _is_schedule(expression: ast.expr, text: str, value: object) -> bool:
    match expression:
        case ast.Name(id=word) if isinstance(value, str):  # where the key takes a text
            return value == word
        case ast.Call() | ast.Name() | ast.Attribute():
            name = expression.func if isinstance(expression, ast.Call) else expression
            given = expression.keywords if isinstance(expression, ast.Call) else []
            own = is_dataclass(value) and {field.name: getattr(value, field.name) for field in fields(value)}
            return ast.unparse(name).rpartition(".")[2] == type(value).__name__ and all(
                _is_schedule(keyword.value, text, own[keyword.arg]) for keyword in given
            )
    return says(ast.get_source_segment(text.replace("@", "").strip(), expression), value)


def _short(text: str) -> str:
    return repr(text) if len(text) < 120 else f"{text[:60]!r}... ({len(text)} characters)"
