"""Every configuration of the repository can be read and makes a model, and those of published models are they."""

import dataclasses
import re
import shutil
import textwrap
import tomllib
from pathlib import Path

import pytest
from beginnings import make_published, make_runs
from messages import CLASSES, check, refusal, refused
from tiny_tokenizer import write_tokenizer

import jaxtrain
from jaxtrain.cli.config_file import load
from jaxtrain.cli.config_moved import REMOVED_KEYS
from jaxtrain.cli.main import main
from jaxtrain.models.presets import llama2_7b, llama31_8b, llama31_70b
from jaxtrain.nn.remat import NoRemat
from jaxtrain.record.files import RunFiles
from jaxtrain.train.folder import RunFolder

FOLDER = Path("configs").resolve()
FILES = sorted(path for path in FOLDER.glob("*.gin") if path.stem != "base")  # which the others include
COUNTED = {  # parameters, and operations a token at the first phase's length: what tokens/s and MFU are reported with
    "adam8bit_tiny": (1_263_232, 8_507_904),
    "chat_tiny": (1_025_152, 5_032_960),
    "deepseek_v3": (671_026_404_352, 250_457_382_912),  # and 14,848 biases of the choice, which are buffers
    "depths_tiny": (886_274, 3_401_664),
    "distill_tiny": (475_776, 4_917_760),  # a third of the teacher's operations among them
    "encoder_tiny": (936_192, 6_930_432),
    "finetune_tiny": (869_504, 5_753_856),
    "gla_tiny": (947_712, 5_529_600),
    "hybrid_tiny": (1_330_448, 8_292_864),
    "llama2_7b": (6_738_415_616, 41_253_863_424),
    "llama31_70b": (70_553_706_496, 433_120_346_112),
    "llama31_8b": (8_030_261_248, 46_639_349_760),
    "mixture_tiny": (1_049_728, 6_294_528),
    "mixtral_8x7b": (46_702_792_704, 79_713_533_952),  # of its 12.9B active parameters
    "moe_tiny": (1_463_424, 4_008_960),
    "parquet_tiny": (869_504, 5_753_856),
    "phases_tiny": (869_504, 5_753_856),
    "pipeline_tiny": (1_656_960, 10_475_520),
    "pr_moe_tiny": (2_640_512, 7_532_544),
    "qlora_tiny": (959_616, 4_566_016),  # 77,824 of them trained; scales of blocks are counted
    "quickstart": (869_504, 5_753_856),
    "wandb_tiny": (869_504, 5_753_856),
}
PUBLISHED = {"llama2_7b": llama2_7b, "llama31_8b": llama31_8b, "llama31_70b": llama31_70b}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "llama"
    make_published(folder)
    return folder


@pytest.fixture
def quickstart(tmp_path, published, monkeypatch):
    """A folder with the runs, the Hugging Face folder and the tokenizer that other configurations begin with."""
    make_runs(tmp_path)
    (tmp_path / "published").symlink_to(published)
    write_tokenizer(tmp_path / "tokenizer.json")  # of the mixture
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_configuration_makes_a_model(file, quickstart):
    config = load(file).config
    model = config.model
    counted = model.parameter_count, model.flops_per_token(config.phases[0].sequence_length)
    assert counted == COUNTED[file.stem]
    if file.stem in PUBLISHED:
        published = PUBLISHED[file.stem]()
        as_published = {"compute_dtype": "float32", "remat": NoRemat()}
        assert dataclasses.replace(model, **as_published) == published


def test_every_configuration_says_what_it_shows_and_is_listed():
    page = (FOLDER.parent / "docs/configuration.md").read_text()
    listed = dict(re.findall(r"^\| \[`(\w+)`\]\(\.\./configs/\1\.gin\) \| (\S.*) \|$", page, re.MULTILINE))
    assert [*listed] == [file.stem for file in FILES]
    assert all(file.read_text().startswith("# ") for file in FILES)


def test_no_published_configuration_is_passed_over():
    assert PUBLISHED.keys() <= {file.stem for file in FILES}


def test_shipped_configurations_are_found_from_any_folder_and_give_way_to_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("configs/quickstart.gin").config == load(FOLDER / "quickstart.gin").config
    with refused(FileNotFoundError, "'configs/quickstrat.gin'", "'quickstart.gin'"):
        load("configs/quickstrat.gin")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/quickstart.gin").write_text("include 'configs/base.gin'\nunused = 1\n")
    with refused(ValueError, "configs/quickstart.gin:2", recorded=False):
        load("configs/quickstart.gin")
    (tmp_path / "mine.gin").write_text("include 'configs/moe_tiny.gin'\n")
    assert load("mine.gin").config == load(FOLDER / "moe_tiny.gin").config


def test_a_wheel_has_the_configurations_and_the_kernels(tmp_path, monkeypatch):
    wheel = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["only-include"] == ["jaxtrain", "kernels/jaxtrain_kernels", "configs"]
    assert wheel["sources"]["kernels/jaxtrain_kernels"] == "jaxtrain_kernels"
    package = tmp_path / "jaxtrain"
    package.mkdir()
    shutil.copytree(FOLDER, tmp_path / wheel["sources"]["configs"])
    monkeypatch.setattr(jaxtrain, "__file__", str(package / "__init__.py"))
    monkeypatch.chdir(package)
    (package / "configs").rename(tmp_path / "moved")
    with refused(FileNotFoundError, "'configs/quickstart.gin'", recorded=False):
        load("configs/quickstart.gin")
    (tmp_path / "moved").rename(package / "configs")
    monkeypatch.chdir(tmp_path)
    assert load("configs/quickstart.gin").config == load(FOLDER / "quickstart.gin").config


@pytest.mark.parametrize("key", REMOVED_KEYS)
def test_a_key_that_an_earlier_run_recorded_is_refused_with_what_to_do(key, tmp_path):
    recorded = tmp_path / "config.gin"
    recorded.write_text(
        "from __gin__ import dynamic_registration\n"
        "from jaxtrain.models import decoder\nfrom jaxtrain.nn import block\n"
        "from jaxtrain.nn.mixers import attention\nfrom jaxtrain.nn.positions import rotary\n"
        "from jaxtrain.nn.remat import full_remat\nfrom jaxtrain.nn.feed_forward import mixture\n"
        f"include '{Path('configs/llama31_8b.gin').resolve()}'\n{key} = 2\n"
    )
    with refused(ValueError, f"{recorded}:9", f"'{key.rsplit('.')[-1]}'", REMOVED_KEYS[key].remedy):
        load(recorded)


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("rope = None", ["positions=None", "@NoPositions()"]),
        ("qk_norm = @norm.RMSNormConfig()", ["qk_norm=@rms_norm.RMSNormConfig()", "@PerHead(norm=...)"]),
    ],
)
def test_a_value_that_an_earlier_run_recorded_is_refused_with_what_to_write(line, facts, tmp_path):
    recorded = tmp_path / "config.gin"
    recorded.write_text(
        "from __gin__ import dynamic_registration\nfrom jaxtrain.nn import attention\nfrom jaxtrain.nn import norm\n"
        f"include '{Path('configs/llama31_8b.gin').resolve()}'\nattention.AttentionConfig.{line}\n"
    )
    with refused(ValueError, f"{recorded}:5", *facts, varies=CLASSES):
        load(recorded)


def test_teachers_are_runs_that_are_found_from_anywhere(quickstart, tmp_path):
    """As docs/finetuning.md writes them."""
    file = tmp_path / "two.gin"
    page = (FOLDER.parent / "docs/finetuning.md").read_text()
    [keys] = re.findall(r"    decoder\.DecoderConfig\.teacher = @teachers\.Ensemble\(\)\n(?:    .*\n)+", page)
    head = re.sub("^(?!from|import|include).*$", "", (FOLDER / "distill_tiny.gin").read_text(), flags=re.MULTILINE)
    head = head.replace("quickstart.gin", str(FOLDER / "distill_tiny.gin"))
    file.write_text(
        head + textwrap.dedent(keys).replace("runs/a", "runs/quickstart").replace("runs/b", "runs/quickstart")
    )
    config = load(file).config
    assert config.model.teacher.members == 2 and config.model.teacher.model.repeats == 4
    run = RunFolder(tmp_path / "runs/two")
    RunFiles.of(config).write(run)
    again = load(run.config).config.model.teacher
    assert [teacher.path for teacher in again.teachers] == [str(tmp_path / "runs/quickstart")] * 2


def test_a_run_that_is_evaluated_with_an_average_is_no_start(quickstart, tmp_path):
    run = tmp_path / "runs/averaged"
    optimizer = "@jaxtrain.optim.schedule_free.ScheduleFree(learning_rate=@Constant(peak=1e-3))"
    config = load(FOLDER / "quickstart.gin", [f"optimizer={optimizer}"]).config
    run.mkdir()
    RunFiles.of(config).write(RunFolder(run))
    with refused(ValueError, "path='runs/averaged'"):
        load(FOLDER / "qlora_tiny.gin", ["initial.path=runs/averaged"])


def test_the_encoder_trains_by_the_command(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("one line after the other\n" * 200)
    small = {
        "data.source": f"@TextFiles(glob='{tmp_path}/text.txt')",
        "data.validation_fraction": 0.3,
        "model.d_model": 16,
        "model.repeats": 1,
        "phases[0].steps": 2,
        "phases[0].sequence_length": 16,
        "hooks[0].every_steps": 1,
        "hooks[0].batches": 1,
        "optimizer.learning_rate.warmup_steps": 1,
    }
    sets = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    assert main(["train", str(FOLDER / "encoder_tiny.gin"), "--run", str(tmp_path / "run"), *sets]) == 0
    printed = capsys.readouterr().out
    assert "next: jaxtrain eval" in printed and "bigram" not in printed and "generate" not in printed


def test_another_base_of_rotary_embeddings_than_that_of_the_weights_is_refused_with_what_to_write(quickstart, capsys):
    theta = "model.pattern[0].mixer.positions.theta"
    command = ["train", FOLDER / "qlora_tiny.gin", "--dry-run", "--set", f"{theta}=500000.0"]
    text = refusal(capsys, *command)
    check(text, "runs/quickstart", f"{theta}=500000.0", 10000.0)
    meant = re.search(r"initial\.changed=\('model\..*\)", text)[0]
    check(refusal(capsys, *command, "--set", meant), "no finished checkpoint")  # the weights are read next
