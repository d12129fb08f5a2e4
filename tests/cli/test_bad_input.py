"""What a user may get wrong: each ends in one line that names the key or file, the rule and the remedy, with exit code
2, no traceback, and every run folder as it was, byte for byte."""

import functools
import re
import shutil
from pathlib import Path

import pytest
import tokenizers
from tiny_run import command, content, sets

from jaxtrain.cli.config_file import load
from jaxtrain.cli.main import main
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.metrics import read_metrics

GOLDENS = Path(__file__).parents[1] / "golden" / "huggingface"


def refused(capsys, *arguments):
    """Run a command that must be refused and return the one line it ends with."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxtrain: error: ") and error.endswith("\n") and error.count("\n") == 1, error
    return error.removeprefix("jaxtrain: error: ").rstrip("\n")


@pytest.fixture
def run_copy(tiny_run, tmp_path):
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file that is no text, and a tokenizer of 400 tokens."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "picture.txt").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    (folder / "latin.txt").write_bytes("déjà vu".encode("latin-1"))
    words = {"<|endoftext|>": 0, "<unk>": 1} | {f"w{i}": i for i in range(2, 400)}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    model.add_special_tokens(["<|endoftext|>"])
    model.save(str(folder / "tokenizer.json"))
    return folder


# Changes to a configuration that is right, and what the line must say: the key or file, the rule, the remedy.
CONFIGURATIONS = {
    "unknown key": (
        {"model.d_modle": 64},
        r"model\.d_modle=64: decoder\.DecoderConfig has no key 'd_modle'; the nearest valid name is 'd_model'",
    ),
    "unknown class": ({"optimizer": "@AdanW()"}, r"optimizer=.*no class 'AdanW'; the nearest valid name is 'AdamW'"),
    "wrong type": ({"model.d_model": "wide"}, r"model\.d_model='wide' must be int, not str"),
    "wrong type in a tuple": ({"phases[0].steps": 1.5}, r"phases\[0\]\.steps=1\.5 must be int, not float"),
    "value out of range": ({"phases[0].steps": 0}, r"phases\[0\].*steps=0: must be at least 1"),
    "mesh that does not divide the devices": (
        {"mesh.data": 3},
        r"mesh data=3 x fsdp=-1 does not fit 8 devices: .*3, which does not divide 8; change one of them",
    ),
    "mesh of too many devices": (
        {"mesh.fsdp": 4, "mesh.tensor": 4},
        r"mesh fsdp=4 x tensor=4 does not fit 8 devices: the axes must multiply to 8; set one of them to -1 .*; or "
        r"simulate devices on this CPU, XLA_FLAGS=--xla_force_host_platform_device_count=16 before JAX starts",
    ),
    "mesh that does not divide the model": (
        {"model.d_model": 36},
        r"mesh axis .*fsdp=8 does not divide the dimension 'embed' of size 36: choose a divisor of 36",
    ),
    "batch not divisible": (
        {"phases[0].batch_size": 12},
        r"phases\[0\]\.batch_size=12 is not divisible by 8 \(mesh fsdp=8, microbatches=1\): use 16$",
    ),
    "batch between two numbers of microbatches": (
        {"gradients.microbatches": 3, "phases[0].batch_size": 32},
        r"phases\[0\]\.batch_size=32 is not divisible by 24 .*: use 48, or gradients\.microbatches=2 or 4$",
    ),
    "batch not divisible by microbatches": (
        {"gradients.microbatches": 2},
        r"phases\[0\]\.batch_size=8 is not divisible by 16 \(mesh fsdp=8, microbatches=2\): use 16, "
        r"or gradients\.microbatches=1$",
    ),
    "batch and microbatches, where the schedule has a rule too": (
        {"mesh.stage": 8, "model.repeats": 16, "gradients": "@Pipelined(microbatches=16)", "phases[0].batch_size": 24},
        r"phases\[0\]\.batch_size=24 is not divisible by 16 \(microbatches=16\): use 32, "
        r"or gradients\.microbatches=8 or 24$",
    ),
    "heads not divisible by tensor": (
        {"mesh.tensor": 8},
        r"model\.pattern\[0\]\.mixer\.heads=4 is not divisible by mesh\.tensor=8: choose a tensor axis that divides",
    ),
    "stages without a pipeline": (
        {"mesh.stage": 4},
        r"mesh\.stage=4 needs a pipeline: set gradients to Pipelined\(microbatches=\.\.\.\), or leave mesh\.stage at 1",
    ),
    "microbatches that do not fit the schedule": (
        {"mesh.stage": 4, "gradients": "@Pipelined(microbatches=2)"},
        r"PairedInterleaved\(.*\) with mesh\.stage=4: microbatches=2 must be a multiple of 4 \(.*\); nearest 4",
    ),
    "more chunks than layers": (
        {"mesh.stage": 4, "gradients": "@Pipelined(microbatches=4)"},
        r"with mesh\.stage=4: model\.repeats=1 cannot fill 8 chunks, .*; nearest model\.repeats=8$",
    ),
    "two directions over an odd number of stages": (
        {"gradients": "@Pipelined(microbatches=1,schedule=@Chimera())"},
        r"Chimera\(\) with mesh\.stage=1: stages=1: .*must be even; nearest 2",
    ),
    "activations that a pipeline would offload": (
        {"gradients": "@Pipelined(microbatches=1)", "model.remat": "@OffloadOutputs()"},
        r"model\.remat=OffloadOutputs\(\): a pipeline .*; use SaveOutputs\(\) or FullRemat\(\)",
    ),
    "sequence longer than the model's": (
        {"phases[0].sequence_length": 512},
        r"phases\[0\]\.sequence_length=512 exceeds model\.max_length=256: shorten the sequences or raise max_length",
    ),
    "sample longer than the model's": (
        {"hooks[1].tokens": 300},
        r"hooks\[1\]\.tokens=300 after a prompt of 4 exceed model\.max_length=256: shorten them or raise max_length",
    ),
    "sample of no tokens": ({"hooks[1].tokens": 0}, r"hooks\[1\].*tokens=0: must be at least 1"),
    "sample at a negative temperature": (
        {"hooks[1].temperature": -1.0},
        r"hooks\[1\].*temperature=-1\.0: must be at least 0, which takes the likeliest token",
    ),
    "seed that is too large": (
        {"seed": 2**63},
        r"seed=9223372036854775808: no integer of a configuration may reach 2\^63",
    ),
    "class of another key": (
        {"optimizer": "@Cosine(peak=1e-3)"},
        r"optimizer=@schedules\.Cosine\(\) must be Adafactor \| AdamW \| AdamW8bit \| Lion \| Muon \| ScheduleFree$",
    ),
    "gradients without a range": (
        {"model.compute_dtype": "'float16'"},
        r"model\.compute_dtype='float16': its gradients would underflow.*; use 'bfloat16' or 'float32'",
    ),
    "abstract class": (
        {"optimizer": "@jaxtrain.optim.base.Optimizer()"},
        r"optimizer=.*base\.Optimizer.* is neither a dataclass nor a function",
    ),
    "warm-up longer than the run": (
        {"optimizer.learning_rate.warmup_steps": 4},
        r"optimizer\.learning_rate: warmup_steps=4 exceeds the 3 steps there are: make it smaller or the run longer",
    ),
    "warm-up longer than its phase": (
        {"phases[0].learning_rate": "@Constant(peak=1e-3,warmup_steps=4)"},
        r"phases\[0\]\.learning_rate: warmup_steps=4 exceeds the 3 steps there are",
    ),
    "schedule longer than the run": (
        {"optimizer.learning_rate": "@WarmupStableDecay(peak=1e-3,decay_steps=4)"},
        r"optimizer\.learning_rate: warmup_steps=0 and decay_steps=4 exceed the 3 steps there are: make them",
    ),
    "schedule longer than its phase": (
        {"phases[0].learning_rate": "@WarmupStableDecay(peak=1e-3,warmup_steps=2,decay_steps=2)"},
        r"phases\[0\]\.learning_rate: warmup_steps=2 and decay_steps=2 exceed the 3 steps there are: make them smaller",
    ),
    "checkpoints kept at every zeroth step": (
        {"hooks[2].keep_every_steps": 0},
        r"hooks\[2\].*keep_every_steps=0: must be at least 1, or None",
    ),
    "gradients clipped to nothing": ({"clip_norm": 0}, r"clip_norm=0\.0: must be above 0 .*, or None for none"),
    "gradients clipped to what devices take for nothing": ({"clip_norm": 1e-300}, r"clip_norm=1e-300: must be above 0"),
    "rate beyond float32": (
        {"optimizer.learning_rate.peak": 1e300},
        r"peak=1e\+300: must not be negative, and in float32 \(0, or 1\.2e-38 to 3\.4e38\)",
    ),
    "moving average that keeps everything": ({"optimizer.b2": 1.0}, r"optimizer.*b2=1\.0: must be in \[0, 1\)"),
    "weights that would grow": (
        {"optimizer.weight_decay": -0.1},
        r"optimizer.*weight_decay=-0\.1: must not be negative",
    ),
    "schedule that ends below nothing": (
        {"optimizer.learning_rate.final_ratio": -0.1},
        r"optimizer\.learning_rate.*final_ratio=-0\.1: must be in \[0, 1\]",
    ),
    "empty glob": (
        {"data.source": "@TextFiles(glob='{files}/*.rst')"},
        r"glob='{files}/\*\.rst' matches no file\. Correct it",
    ),
    "binary glob": (
        {"data.source": "@TextFiles(glob='{files}/p*.txt')"},
        r"matches {files}/picture\.txt, which is not UTF-8 text \(a zero byte at offset 8\)\. Narrow the glob, or",
    ),
    "glob of another encoding": (
        {"data.source": "@TextFiles(glob='{files}/l*.txt')"},
        r"matches {files}/latin\.txt, which is not UTF-8 text \(.*\)\. Narrow the glob, or convert the file to UTF-8",
    ),
    "binary glob in a later phase": (
        {
            "phases": "(@Phase(steps=1,batch_size=8,sequence_length=8),@Phase(steps=1,batch_size=8,sequence_length=8,"
            "data=@DataConfig(source=@TextFiles(glob='{files}/p*.txt'))))"
        },
        r"matches {files}/picture\.txt, which is not UTF-8 text",
    ),
    "tokenizer larger than the vocabulary": (
        {"data.tokenizer": "@HuggingFaceTokenizer(path='{files}/tokenizer.json')"},
        r"the tokenizer has 400 tokens, model\.vocab_size=320: set model\.vocab_size to at least 400",
    ),
    "tokenizer that is not there": (
        {"data.tokenizer": "@HuggingFaceTokenizer(path='{files}/nothing.json')"},
        r"path='{files}/nothing\.json' cannot be read \(.*\)\. Name a tokenizer JSON file",
    ),
}


@pytest.mark.parametrize("changes, message", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_configuration_is_refused_and_nothing_is_written(tiny_run, files, tmp_path, capsys, changes, message):
    before = content(tiny_run.folder)
    changes = {key: str(value).replace("{files}", str(files)) for key, value in changes.items()}
    command = [*tiny_run.command, *sets(changes)]
    line = refused(capsys, *command, "--run", tiny_run.folder, "--overwrite")
    assert re.search(message.replace("{files}", re.escape(str(files))), line), line
    assert refused(capsys, *command, "--run", tmp_path / "new" / "run") == line
    assert not (tmp_path / "new").exists()
    assert content(tiny_run.folder) == before


@pytest.mark.parametrize(
    "line, message",
    [
        ("decoder.DecoderConfig.d_modle = 64", r"own\.gin:4: .*no key 'd_modle'; the nearest valid name is 'd_model'"),
        ("decoder.DecoderConfig.d_model = 'wide'", r"own\.gin:4: model\.d_model='wide' must be int, not str"),
        ("include 'no.gin'", r"own\.gin:4: there is no configuration file 'no\.gin'"),
    ],
)
def test_file_is_refused_by_line(tiny_run, tmp_path, capsys, line, message):
    own = tmp_path / "own.gin"
    head = "from __gin__ import dynamic_registration\nfrom jaxtrain.models import decoder\n"
    own.write_text(f"{head}include '{tiny_run.command[1]}'\n{line}\n")
    assert re.search(message, refused(capsys, "train", own, "--run", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_another_configuration_in_the_folder_is_refused_with_the_difference(tiny_run, capsys):
    before = content(tiny_run.folder)
    other = [*tiny_run.command, *sets({"phases[0].steps": 5, "seed": 1}), "--run", tiny_run.folder]
    line = refused(capsys, *other)
    assert line.startswith(f"{tiny_run.folder} holds a run with another configuration")
    assert "phases[0].steps: 3 -> 5; seed: 0 -> 1" in line
    assert "pass --allow-config-change to go on with the new one, --overwrite to begin anew, or --run" in line
    assert content(tiny_run.folder) == before


def test_resume_goes_on_with_the_other_configuration(tiny_run, run_copy):
    """With a schedule, too, that a shorter run than the new one could not have."""
    longer = {"phases[0].steps": 5, "optimizer.learning_rate": "@WarmupStableDecay(peak=1e-3,decay_steps=4)"}
    assert main([*tiny_run.command, *sets(longer), "--run", str(run_copy), "--allow-config-change"]) == 0
    assert losses(run_copy).keys() == {1, 2, 3, 4, 5}
    assert {step: loss for step, loss in losses(run_copy).items() if step <= 3} == losses(tiny_run.folder)
    assert load(run_copy).config.phases[0].steps == 5


def test_overwrite_begins_anew(tiny_run, run_copy):
    (run_copy / "notes.md").write_text("mine")
    assert main([*tiny_run.command, *sets({"seed": 1}), "--run", str(run_copy), "--overwrite"]) == 0
    assert losses(run_copy).keys() == {1, 2, 3}
    assert losses(run_copy)[1] != losses(tiny_run.folder)[1]
    assert load(run_copy).config.seed == 1
    assert len(list((run_copy / "tensorboard").iterdir())) == 1
    assert (run_copy / "notes.md").read_text() == "mine", "what is not the run's stays"


@pytest.mark.parametrize("changes", [{"model.repeats": 2}, {"optimizer": "@Lion(learning_rate=@Constant(peak=1e-4))"}])
def test_resuming_with_another_model_or_optimizer_is_refused(tiny_run, capsys, changes):
    before = content(tiny_run.folder)
    line = refused(capsys, *tiny_run.command, *sets(changes), "--run", tiny_run.folder, "--allow-config-change")
    assert line.startswith(f"{tiny_run.folder} cannot go on, its checkpoints are of another model or optimizer")
    assert f"{next(iter(changes))}: " in line and "--overwrite" in line
    assert content(tiny_run.folder) == before


def test_step_that_cannot_be_traced_leaves_the_run_as_it_was(tiny_run, capsys):
    mixer = "@LinearAttentionConfig(heads=4,kv_heads=4,head_dim=8,value_dim=8,implementation='gpu')"
    before = content(tiny_run.folder)
    changed = [*tiny_run.command, *sets({"model.pattern[0].mixer": mixer}), "--run", tiny_run.folder]
    line = refused(capsys, *changed, "--overwrite")
    assert line.startswith("linear_attention: no implementation takes this call. gpu: ")
    assert content(tiny_run.folder) == before


def test_run_that_is_a_file_is_refused(tiny_run, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    line = refused(capsys, *tiny_run.command, "--run", tmp_path / "file", "--overwrite")
    assert line == f"{tmp_path}/file is a file: name a folder, --run FOLDER"
    assert (tmp_path / "file").read_text() == "mine"


def test_run_below_a_file_is_refused(tiny_run, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    line = refused(capsys, *tiny_run.command, "--run", tmp_path / "file" / "run")
    assert line.startswith(f"{tmp_path}/file/run cannot be written: Not a directory")
    assert "see to it that the folder can be written, or name another one" in line
    assert content(tmp_path).keys() == {"file"}


@pytest.mark.parametrize(
    "error, line",
    [
        (PermissionError("Forbidden: s3://bucket/text.txt"), "Forbidden: s3://bucket/text.txt"),
        (PermissionError(13, "Permission denied", "/mine/text.txt"), "/mine/text.txt: Permission denied"),
        (IsADirectoryError(21, "Is a directory", "text"), "text: Is a directory"),
    ],
)
def test_what_the_system_refuses_is_one_line(capsys, monkeypatch, error, line):
    def fail(arguments):
        raise error

    monkeypatch.setattr("jaxtrain.cli.eval.run", fail)
    assert refused(capsys, "eval", "run") == line


def test_prompt_longer_than_the_context_is_refused(tiny_run, capsys):
    before = content(tiny_run.folder)
    line = refused(capsys, "generate", tiny_run.folder, "--prompt", "x" * 240, "--tokens", 20)
    assert line == (
        "a prompt of 240 tokens and 20 more exceed the model's context of 256: shorten the prompt to at most "
        "236 tokens or ask for at most 16 tokens (--tokens 16)"
    )
    assert content(tiny_run.folder) == before


@pytest.mark.parametrize("command", ["generate", "eval", "plot", "convert"])
def test_folder_that_is_no_run_is_refused_by_name(tmp_path, capsys, command):
    (tmp_path / "empty").mkdir()
    rest = {"generate": ["--prompt", "x"], "convert": [tmp_path / "target"]}.get(command, [])
    assert str(tmp_path / "empty") in refused(capsys, command, tmp_path / "empty", *rest)
    assert content(tmp_path) == {"empty": "folder"}


@pytest.mark.parametrize("command", ["generate", "eval", "plot", "convert", "config diff"])
def test_run_that_does_not_exist_is_refused_with_the_nearest(tmp_path, capsys, command):
    for name in ("quickstart", "other"):
        (tmp_path / name).mkdir()
    rest = {"generate": ["--prompt", "x"], "convert": [tmp_path / "target"], "config diff": [tmp_path]}
    line = refused(capsys, *command.split(), tmp_path / "quikstart", *rest.get(command, []))
    assert re.search(r"quikstart'? does not exist|no run '.*quikstart'", line)
    assert line.endswith("; the nearest valid name is 'quickstart'")


def test_missing_safetensors_shard_is_refused_by_name(tmp_path, capsys):
    source = shutil.copytree(GOLDENS / "llama", tmp_path / "llama")
    (source / "model-00002-of-00002.safetensors").unlink()
    before = content(tmp_path)
    line = refused(capsys, "convert", source, tmp_path / "run")
    assert str(source) in line and "lacks model-00002-of-00002.safetensors" in line
    assert content(tmp_path) == before


def test_family_that_convert_does_not_know_is_refused_with_those_it_knows(tmp_path, capsys):
    source = shutil.copytree(GOLDENS / "qwen3", tmp_path / "qwen3")
    settings = (source / "config.json").read_text()
    (source / "config.json").write_text(settings.replace('"model_type": "qwen3"', '"model_type": "mamba"'))
    before = content(tmp_path)
    line = refused(capsys, "convert", source, tmp_path / "run")
    assert "model_type='mamba'" in line and "llama, mistral, qwen3, gemma2, gpt2" in line
    assert content(tmp_path) == before


def losses(folder):
    return {r["step"]: r["loss"] for r in read_metrics(RunFolder(folder).metrics) if "loss" in r}


AVERAGE = "@LatestWeightAverage(every_steps=1, window=1000000000)"
ABSURD = {
    "steps": ({"phases[0].steps": 10**12}, "phases make 1,000,000,000,000 steps, of 256,000,000,000,000 tokens"),
    "layers": ({"model.repeats": 2 * 10**9}, "parameters (model.repeats, "),
    "vocabulary": ({"model.vocab_size": 10**12}, "parameters (model.repeats, "),
    "averages": ({"hooks": f"({AVERAGE},)"}, "1,000,000,000 weights in the averages of hooks[0]"),
    "rows": ({"phases[0].batch_size": 8 * 10**12}, "(phases[0].batch_size=8000000000000, sequence_length=32)"),
    "microbatches": ({"gradients": f"@Accumulate(microbatches={10**12})"}, "microbatches=1000000000000): use 8"),
    "window": ({"model.pattern[0].mixer.window": 10**12}, "window=1000000000000: must be from 1 to 2147483647"),
    "devices": ({"mesh.data": 10**12}, "mesh data=1000000000000 x fsdp=-1 does not fit 8 devices"),
    "30 digits": ({"hooks[2].every_steps": 10**30}, "hooks[2].every_steps=1" + 30 * "0" + ": no integer of a"),
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_size_is_refused_at_once_with_what_it_would_need(text, tmp_path, capsys, name):
    changes, said = ABSURD[name]
    line = refused(capsys, *command(text), "--run", tmp_path / "run", *sets(changes))
    assert said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [("--stages", 4, "--microbatches", 10**9), ("--stages", 10**9, "--microbatches", 4)])
def test_absurd_table_is_refused_at_once(capsys, size):
    line = refused(capsys, "schedule", "show", "OneFOneB", *size)
    assert "make a table of 8,000,000,000 actions or more: one has at most 1,048,576" in line


def test_want_of_memory_is_one_line(capsys, monkeypatch):
    for error, line in [
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes."), "RESOURCE_EXHAUSTED: Out of memory "),
        (MemoryError(), "out of memory"),
    ]:
        monkeypatch.setattr("jaxtrain.cli.eval.run", functools.partial(_fail, error))
        assert refused(capsys, "eval", "run").startswith(line)


def _fail(error, arguments):
    raise error
