"""What a user may get wrong: each ends in one line that names the key or file, the rule and the remedy, with exit code
2, no traceback, and every run folder as it was, byte for byte."""

import functools
import shutil
from pathlib import Path

import pytest
import tokenizers
from messages import CLASSES, check, refusal
from tiny_run import QUICKSTART, command, content, sets

from jaxtrain.cli.config_file import load
from jaxtrain.cli.main import main
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.metrics import read_metrics

GOLDENS = Path(__file__).parents[1] / "golden" / "huggingface"


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


# Changes to a configuration that is right, and what the line must name: the key or file, the value, the remedy.
CONFIGURATIONS = {
    "unknown key": ({"model.d_modle": 64}, ("model.d_modle=64", "d_model")),
    "unknown class": ({"optimizer": "@ScheduledFree()"}, ("optimizer", "ScheduledFree", "'ScheduleFree'")),
    "wrong type": ({"model.d_model": "wide"}, ("model.d_model='wide'", "int")),
    "wrong type in a tuple": ({"phases[0].steps": 1.5}, ("phases[0].steps=1.5", "int")),
    "value out of range": ({"phases[0].steps": 0}, ("phases[0]", "steps=0", 1)),
    "mesh that does not divide the devices": ({"mesh.data": 3}, ("data=3", "fsdp=-1", 8)),
    "mesh of too many devices": (
        {"mesh.fsdp": 4, "mesh.tensor": 4},
        ("fsdp=4", "tensor=4", 8, -1, "XLA_FLAGS=--xla_force_host_platform_device_count=16"),
    ),
    "mesh that does not divide the model": ({"model.d_model": 36}, ("model.d_model=36", "mesh.fsdp=8")),
    "batch not divisible": (
        {"phases[0].batch_size": 12},
        ("phases[0].batch_size=12", "by 8", "fsdp=8", "microbatches=1", 16),
    ),
    "batch between two numbers of microbatches": (
        {"gradients.microbatches": 3, "phases[0].batch_size": 32},
        ("phases[0].batch_size=32", 24, 48, "gradients.microbatches=2 or 4"),
    ),
    "batch not divisible by microbatches": (
        {"gradients.microbatches": 2},
        ("phases[0].batch_size=8", 16, "fsdp=8", "microbatches=2", "gradients.microbatches=1"),
    ),
    "batch and microbatches, where the schedule has a rule too": (
        {
            "mesh.stage": 8,
            "model.repeats": 16,
            "gradients": "@Pipelined(microbatches=16,schedule=@PairedDeferredW())",
            "phases[0].batch_size": 24,
        },
        ("phases[0].batch_size=24", "by 16", "microbatches=16", 32, "gradients.microbatches=8 or 24"),
    ),
    "heads not divisible by tensor": ({"mesh.tensor": 8}, ("model.pattern[0].mixer.heads=4", "mesh.tensor=8")),
    "stages without a pipeline": ({"mesh.stage": 4}, ("mesh.stage=4", "Pipelined", 1)),
    "microbatches that do not fit the schedule": (
        {"mesh.stage": 4, "gradients": "@Pipelined(microbatches=2,schedule=@PairedDeferredW())"},
        ("PairedDeferredW", "mesh.stage=4", "microbatches=2", "nearest 4"),
    ),
    "more chunks than layers": (
        {"mesh.stage": 4, "gradients": "@Pipelined(microbatches=4)"},
        ("mesh.stage=4", "model.repeats=1", "8 chunks", "model.repeats=8"),
    ),
    "two directions over an odd number of stages": (
        {"gradients": "@Pipelined(microbatches=1,schedule=@Chimera())"},
        ("Chimera()", "mesh.stage=1", "stages=1", 2),
    ),
    "activations that a pipeline would offload": (
        {"gradients": "@Pipelined(microbatches=1)", "model.remat": "@OffloadOutputs()"},
        ("model.remat=OffloadOutputs()", "SaveOutputs()", "FullRemat()"),
    ),
    "sequence longer than the model's": (
        {"phases[0].sequence_length": 512},
        ("phases[0].sequence_length=512", "model.max_length=256"),
    ),
    "sample longer than the model's": ({"hooks[1].tokens": 300}, ("hooks[1].tokens=300", 4, "model.max_length=256")),
    "sample of no tokens": ({"hooks[1].tokens": 0}, ("hooks[1]", "tokens=0", 1)),
    "sample at a negative temperature": ({"hooks[1].temperature": -1.0}, ("hooks[1]", "temperature=-1.0", 0)),
    "seed that is too large": ({"seed": 2**63}, ("seed=9223372036854775808", "2^63")),
    "class of another key": (
        {"optimizer": "@jaxtrain.optim.schedules.Cosine(peak=1e-3)"},
        ("optimizer=@cosine.Cosine()", "AdamW8bit", "ScheduleFree"),
    ),
    "gradients without a range": (
        {"model.compute_dtype": "'float16'"},
        ("model.compute_dtype='float16'", "bfloat16", "float32"),
    ),
    "abstract class": ({"optimizer": "@jaxtrain.optim.base.Optimizer()"}, ("optimizer", "base.Optimizer")),
    "warm-up longer than the run": (
        {"optimizer.learning_rate.warmup_steps": 4},
        ("optimizer.learning_rate", "warmup_steps=4", 3),
    ),
    "warm-up within a wrapper": (
        {"optimizer": "@SAM(optimizer=@AdamW(learning_rate=@Constant(peak=1e-3,warmup_steps=4)))"},
        ("optimizer.optimizer.learning_rate", "warmup_steps=4", 3),
    ),
    "average within a cautious optimizer": (
        {"optimizer": "@Cautious(optimizer=@ScheduleFree(learning_rate=@Constant(peak=1e-3)))"},
        ("optimizer", "ScheduleFree", "average"),
    ),
    "warm-up longer than its phase": (
        {"phases[0].learning_rate": "@Constant(peak=1e-3,warmup_steps=4)"},
        ("phases[0].learning_rate", "warmup_steps=4", 3),
    ),
    "schedule longer than the run": (
        {"optimizer.learning_rate": "@WarmupStableDecay(peak=1e-3,decay_steps=4)"},
        ("optimizer.learning_rate", "warmup_steps=0", "decay_steps=4", 3),
    ),
    "schedule longer than its phase": (
        {"phases[0].learning_rate": "@WarmupStableDecay(peak=1e-3,warmup_steps=2,decay_steps=2)"},
        ("phases[0].learning_rate", "warmup_steps=2", "decay_steps=2", 3),
    ),
    "checkpoints kept at every zeroth step": (
        {"hooks[2].keep_every_steps": 0},
        ("hooks[2]", "keep_every_steps=0", 1, None),
    ),
    "gradients clipped to nothing": ({"clip_norm": 0}, ("clip_norm=0.0", 0, None)),
    "gradients clipped to what devices take for nothing": ({"clip_norm": 1e-300}, ("clip_norm=1e-300", 0)),
    "rate beyond float32": ({"optimizer.learning_rate.peak": 1e300}, ("peak=1e+300", 0, "1.2e-38", "3.4e38")),
    "moving average that keeps everything": ({"optimizer.b2": 1.0}, ("optimizer", "b2=1.0", "[0, 1)")),
    "weights that would grow": ({"optimizer.weight_decay": -0.1}, ("optimizer", "weight_decay=-0.1")),
    "schedule that ends below nothing": (
        {"optimizer.learning_rate.final_ratio": -0.1},
        ("optimizer.learning_rate", "final_ratio=-0.1", "[0, 1]"),
    ),
    "empty glob": ({"data.source": "@TextFiles(glob='{files}/*.rst')"}, ("glob='{files}/*.rst'",)),
    "binary glob": ({"data.source": "@TextFiles(glob='{files}/p*.txt')"}, ("{files}/picture.txt", "UTF-8", "offset 8")),
    "glob of another encoding": ({"data.source": "@TextFiles(glob='{files}/l*.txt')"}, ("{files}/latin.txt", "UTF-8")),
    "binary glob in a later phase": (
        {
            "phases": "(@Phase(steps=1,batch_size=8,sequence_length=8),@Phase(steps=1,batch_size=8,sequence_length=8,"
            "data=@DataConfig(source=@TextFiles(glob='{files}/p*.txt'))))"
        },
        ("{files}/picture.txt", "UTF-8"),
    ),
    "tokenizer larger than the vocabulary": (
        {"data.tokenizer": "@HuggingFaceTokenizer(path='{files}/tokenizer.json')"},
        (400, "model.vocab_size=320"),
    ),
    "tokenizer that is not there": (
        {"data.tokenizer": "@HuggingFaceTokenizer(path='{files}/nothing.json')"},
        ("path='{files}/nothing.json'",),
    ),
}


NOT_OURS = {  # but of Python, a library or other tests
    "class of another key": CLASSES,
    "glob of another encoding": {"<python>": r"(?<=text )\(.*\)"},
    "tokenizer that is not there": {"<tokenizers>": r"(?<=read )\(.*\)"},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configuration_is_refused_and_nothing_is_written(tiny_run, files, tmp_path, capsys, name):
    changes, facts = CONFIGURATIONS[name]
    before = content(tiny_run.folder)
    changes = {key: str(value).replace("{files}", str(files)) for key, value in changes.items()}
    command = [*tiny_run.command, *sets(changes)]
    line = refusal(capsys, *command, "--run", tiny_run.folder, "--overwrite")
    check(line, *(str(fact).replace("{files}", str(files)) for fact in facts), varies=NOT_OURS.get(name))
    assert refusal(capsys, *command, "--run", tmp_path / "new" / "run") == line
    assert not (tmp_path / "new").exists()
    assert content(tiny_run.folder) == before


@pytest.mark.parametrize(
    "line, facts",
    [
        ("decoder.DecoderConfig.d_modle = 64", ("own.gin:4", "d_modle", "d_model")),
        ("decoder.DecoderConfig.d_model = 'wide'", ("own.gin:4", "model.d_model='wide'", "int")),
        ("include 'no.gin'", ("own.gin:4", "no.gin")),
    ],
    ids=["key", "type", "include"],
)
def test_file_is_refused_by_line(tiny_run, tmp_path, capsys, line, facts):
    own = tmp_path / "own.gin"
    head = "from __gin__ import dynamic_registration\nfrom jaxtrain.models import decoder\n"
    own.write_text(f"{head}include '{tiny_run.command[1]}'\n{line}\n")
    check(refusal(capsys, "train", own, "--run", tmp_path / "run"), *facts)
    assert not (tmp_path / "run").exists()


def test_another_configuration_in_the_folder_is_refused_with_the_difference(tiny_run, capsys):
    before = content(tiny_run.folder)
    other = [*tiny_run.command, *sets({"phases[0].steps": 5, "seed": 1}), "--run", tiny_run.folder]
    line = refusal(capsys, *other)
    check(line, tiny_run.folder, "phases[0].steps: 3 -> 5; seed: 0 -> 1")
    check(line, "--allow-config-change", "--overwrite", "--run", recorded=False)
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
    line = refusal(capsys, *tiny_run.command, *sets(changes), "--run", tiny_run.folder, "--allow-config-change")
    check(line, tiny_run.folder, f"{next(iter(changes))}: ", "--overwrite")
    assert content(tiny_run.folder) == before


def test_step_that_cannot_be_traced_leaves_the_run_as_it_was(tiny_run, capsys):
    mixer = "@LinearAttentionConfig(heads=4,kv_heads=4,head_dim=8,value_dim=8,implementation='gpu')"
    before = content(tiny_run.folder)
    changed = [*tiny_run.command, *sets({"model.pattern[0].mixer": mixer}), "--run", tiny_run.folder]
    line = refusal(capsys, *changed, "--overwrite")
    check(line, "linear_attention", "gpu")
    assert content(tiny_run.folder) == before


def test_run_that_is_a_file_is_refused(tiny_run, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    line = refusal(capsys, *tiny_run.command, "--run", tmp_path / "file", "--overwrite")
    check(line, tmp_path / "file", "--run")
    assert (tmp_path / "file").read_text() == "mine"


def test_run_at_an_address_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check(refusal(capsys, "train", QUICKSTART, "--run", "gs://bucket/run"), "gs://bucket/run")
    assert list(tmp_path.iterdir()) == []


def test_run_below_a_file_is_refused(tiny_run, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    line = refusal(capsys, *tiny_run.command, "--run", tmp_path / "file" / "run")
    check(line, tmp_path / "file" / "run", "Not a directory")
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
    assert refusal(capsys, "eval", "run") == line


def test_prompt_longer_than_the_context_is_refused(tiny_run, capsys):
    before = content(tiny_run.folder)
    line = refusal(capsys, "generate", tiny_run.folder, "--prompt", "x" * 240, "--tokens", 20)
    check(line, 240, 20, 256, 236, "--tokens 16")
    assert content(tiny_run.folder) == before


@pytest.mark.parametrize("command", ["generate", "eval", "plot", "convert"])
def test_folder_that_is_no_run_is_refused_by_name(tmp_path, capsys, command):
    (tmp_path / "empty").mkdir()
    rest = {"generate": ["--prompt", "x"], "convert": [tmp_path / "target"]}.get(command, [])
    check(refusal(capsys, command, tmp_path / "empty", *rest), tmp_path / "empty")
    assert content(tmp_path) == {"empty": "folder"}


@pytest.mark.parametrize("command", ["generate", "eval", "plot", "convert", "config diff"])
def test_run_that_does_not_exist_is_refused_with_the_nearest(tmp_path, capsys, command):
    for name in ("quickstart", "other"):
        (tmp_path / name).mkdir()
    rest = {"generate": ["--prompt", "x"], "convert": [tmp_path / "target"], "config diff": [tmp_path]}
    line = refusal(capsys, *command.split(), tmp_path / "quikstart", *rest.get(command, []))
    check(line, "quikstart", "'quickstart'")


def test_missing_safetensors_shard_is_refused_by_name(tmp_path, capsys):
    source = shutil.copytree(GOLDENS / "llama", tmp_path / "llama")
    (source / "model-00002-of-00002.safetensors").unlink()
    before = content(tmp_path)
    line = refusal(capsys, "convert", source, tmp_path / "run")
    check(line, source, "model-00002-of-00002.safetensors")
    assert content(tmp_path) == before


def test_family_that_convert_does_not_know_is_refused_with_those_it_knows(tmp_path, capsys):
    source = shutil.copytree(GOLDENS / "qwen3", tmp_path / "qwen3")
    settings = (source / "config.json").read_text()
    (source / "config.json").write_text(settings.replace('"model_type": "qwen3"', '"model_type": "mamba"'))
    before = content(tmp_path)
    line = refusal(capsys, "convert", source, tmp_path / "run")
    check(line, "model_type='mamba'", "llama, mistral, qwen2, qwen3, gemma")
    assert content(tmp_path) == before


def losses(folder):
    return {r["step"]: r["loss"] for r in read_metrics(RunFolder(folder).metrics) if "loss" in r}


AVERAGE = "@LatestWeightAverage(every_steps=1, window=1000000000)"
ABSURD = {
    "steps": ({"phases[0].steps": 10**12}, ("1,000,000,000,000", "256,000,000,000,000")),
    "layers": ({"model.repeats": 2 * 10**9}, ("parameters (model.repeats, ",)),
    "vocabulary": ({"model.vocab_size": 10**12}, ("parameters (model.repeats, ",)),
    "averages": ({"hooks": f"({AVERAGE},)"}, ("1,000,000,000", "hooks[0]")),
    "rows": ({"phases[0].batch_size": 8 * 10**12}, ("phases[0].batch_size=8000000000000", "sequence_length=32")),
    "microbatches": ({"gradients": f"@Accumulate(microbatches={10**12})"}, ("microbatches=1000000000000", 8)),
    "window": (
        {"model.pattern[0].mixer.mask": "@SlidingWindow(window=1000000000000)"},
        ("window=1000000000000", 1, 2147483647),
    ),
    "devices": ({"mesh.data": 10**12}, ("data=1000000000000", "fsdp=-1", 8)),
    "30 digits": ({"hooks[2].every_steps": 10**30}, ("hooks[2].every_steps=1" + 30 * "0",)),
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_size_is_refused_at_once_with_what_it_would_need(text, tmp_path, capsys, name):
    changes, facts = ABSURD[name]
    line = refusal(capsys, *command(text), "--run", tmp_path / "run", *sets(changes))
    memory = {"<memory>": r"(?<=machines have )\d\S* .?B"} if "machines have" in line else None
    check(line, *facts, varies=memory)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [("--stages", 4, "--microbatches", 10**9), ("--stages", 10**9, "--microbatches", 4)])
def test_absurd_table_is_refused_at_once(capsys, size):
    line = refusal(capsys, "schedule", "show", "OneFOneB", *size)
    check(line, "8,000,000,000", "1,048,576")


def test_want_of_memory_is_one_line(capsys, monkeypatch):
    for error, line in [
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes."), "RESOURCE_EXHAUSTED: Out of memory "),
        (MemoryError(), "out of memory"),
    ]:
        monkeypatch.setattr("jaxtrain.cli.eval.run", functools.partial(_fail, error))
        assert refusal(capsys, "eval", "run").startswith(line)


def _fail(error, arguments):
    raise error
