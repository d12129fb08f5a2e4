"""Configuration files: what loads, what is refused and in which words, and what a load leaves behind."""

import re

import gin
import pytest
from messages import check, refused
from toy.config import Phase, RunConfig
from toy.layers import AttentionConfig, IdentityConfig, ModelConfig, NormConfig, tiny
from toy.optim.adam import Adam, Constant
from toy.optim.lion import Lion

from jaxtrain.cli.config_file import load

HEAD = """\
from __gin__ import dynamic_registration
from toy import config
from toy import layers
from toy.optim import lion
"""
RUN = """\
config.RunConfig:
  model = @layers.ModelConfig()
  phases = (@config.Phase(),)
config.Phase.steps = 10
layers.ModelConfig.d_model = 64
"""
FULL = """\
width = 64
config.RunConfig:
  model = @layers.ModelConfig()
  phases = (@config.Phase(), @long/config.Phase())
  optimizer = @lion.Lion()
  clip = 2
config.Phase.steps = 10
long/config.Phase.length = 4096
layers.ModelConfig.d_model = %width
layers.ModelConfig.mixers = (@layers.AttentionConfig(), @layers.IdentityConfig(), @local/layers.AttentionConfig())
layers.AttentionConfig.heads = 4
local/layers.AttentionConfig:
  window = 16
  norm = @layers.NormConfig()
local/layers.NormConfig.epsilon = 1e-5
lion.Lion.b1 = 0.95
"""
FULL_CONFIG = RunConfig(
    model=ModelConfig(
        d_model=64,
        mixers=(
            AttentionConfig(heads=4),
            IdentityConfig(),
            AttentionConfig(heads=4, window=16, norm=NormConfig(epsilon=1e-5)),
        ),
    ),
    phases=(Phase(steps=10), Phase(steps=10, length=4096)),
    optimizer=Lion(b1=0.95),
    clip=2.0,
)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file in the working directory, so that errors name it without a folder."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "run.gin", head: str = HEAD) -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(head + text, encoding="utf-8")
        return name

    return write


def _error(path: str, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ValueError) as caught:
        load(path, overrides, root=RunConfig)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_file_makes_the_tree_it_describes(write):
    assert load(write(FULL), root=RunConfig).config == FULL_CONFIG


def test_gin_itself_reads_the_file_to_the_same_configuration(write):
    try:
        gin.parse_config_file(write(FULL))
        assert gin.get_configurable(RunConfig)() == FULL_CONFIG
    finally:
        gin.clear_config()


def test_ints_become_floats_and_lists_tuples(write):
    text = RUN.replace("(@config.Phase(),)", "[@config.Phase()]") + "config.RunConfig.seeds = [1, 2]\n"
    config = load(write(text + "config.RunConfig.clip = 3\n"), root=RunConfig).config
    assert config.seeds == (1, 2) and type(config.clip) is float and config.phases == (Phase(steps=10),)


def test_a_preset_function_is_a_node_that_can_be_overridden(write):
    path = write(RUN.replace("@layers.ModelConfig()", "@layers.tiny()").replace("layers.ModelConfig.d_model = 64", ""))
    assert load(path, root=RunConfig).config.model == tiny()
    assert load(path, ["model.mixers[1].window=5"], root=RunConfig).config.model.mixers[1].window == 5


def test_origins_name_file_and_line_or_default_or_override(write):
    write(RUN, "base.gin")
    path = write('include "base.gin"\nsteps = 3\nconfig.Phase.steps = %steps\n')
    origins = load(path, ["name=other"], root=RunConfig).origins
    assert origins["model.d_model"] == "base.gin:9"
    assert origins["model"] == "base.gin:6"
    assert origins["phases[0].steps"] == "run.gin:6"  # the line of the macro's value
    assert origins["model.norm.epsilon"] == "default"
    assert origins["name"] == "--set"


def test_include_is_found_beside_the_file_and_in_configs(write):
    write(RUN, "configs/base.gin")
    expected = RunConfig(model=ModelConfig(d_model=64), phases=(Phase(steps=10),))
    for path in (write('include "base.gin"\n', "configs/near.gin"), write('include "base.gin"\n', "far.gin")):
        assert load(path, root=RunConfig).config == expected


def test_run_folder_stands_for_its_config_file(write, tmp_path):
    write(RUN, "folder/config.gin")
    assert load(tmp_path / "folder", root=RunConfig).config.model.d_model == 64


def test_key_of_an_included_file_may_fall_out_of_use_when_its_node_is_replaced(write):
    write(RUN + "config.RunConfig.optimizer = @lion.Lion()\nlion.Lion.b1 = 0.8\n", "base.gin")
    replaced = 'include "base.gin"\nfrom toy.optim import adam\nconfig.RunConfig.optimizer = @adam.Adam()\n'
    assert load(write(replaced), root=RunConfig).config.optimizer == Adam()
    check(_error(write(replaced + "lion.Lion.b1 = 0.7\n")), "run.gin:8", "lion.Lion.b1")


ERRORS = {
    "misspelt field": (
        "layers.ModelConfig.tide = True",
        ("run.gin:10", "'tide'", "'tied'"),
    ),
    "misspelt field in a block": (
        "layers.NormConfig:\n  epsilom = 1.0",
        ("run.gin:11", "'epsilom'", "'epsilon'"),
    ),
    "misspelt class": (
        "layers.ModelConfi.tied = True",
        ("run.gin:10", "layers.ModelConfi", "'ModelConfig'"),
    ),
    "misspelt module": (
        "from toy.optim import lionn",
        ("run.gin:10", "toy.optim.lionn", "'lion'"),
    ),
    "name that is not imported": (
        "layer.ModelConfig.tied = True",
        ("run.gin:10", "layer.ModelConfig", "'layers'"),
    ),
    "misspelt macro": (
        "width = 3\nconfig.RunConfig.name = %widht\nconfig.RunConfig.note = %width",
        ("run.gin:11", "widht", "width"),
    ),
    "unused macro": ("width = 3", ("run.gin:10", "macro width")),
    "key of another class": (
        "config.RunConfig.max_iters = 1",
        ("run.gin:10", "config.RunConfig", "'max_iters'", "'config.Phase.steps'"),
    ),
    "unused class": (
        "lion.Lion.b1 = 0.5",
        ("run.gin:10", "lion.Lion.b1", "@lion.Lion()"),
    ),
    "misspelt scope": (
        "layers.ModelConfig.mixers = (@local/layers.AttentionConfig(),)\nlocal/layers.AttentionConfig.heads = 1\n"
        "locl/layers.AttentionConfig.window = 1",
        ("run.gin:12", "locl/layers.AttentionConfig.window", "local/layers.AttentionConfig"),
    ),
    "string for int": (
        "config.Phase.length = 'abc'",
        ("run.gin:10", "phases[0].length='abc'", "int | None"),
    ),
    "float for int": ("config.Phase.length = 1.0", ("run.gin:10", "phases[0].length=1.0", "int | None")),
    "bool for int": ("config.Phase.length = True", ("run.gin:10", "phases[0].length=True", "int | None")),
    "int for bool": ("layers.ModelConfig.tied = 1", ("run.gin:10", "model.tied=1", "bool")),
    "None where not optional": ("config.RunConfig.name = None", ("run.gin:10", "name=None", "str")),
    "not one of a Literal": (
        "layers.NormConfig.kind = 'rsm'\nlayers.ModelConfig.norm = @layers.NormConfig()",
        ("run.gin:10", "model.norm.kind='rsm'", "['rms', 'layer']"),
    ),
    "wrong item of a tuple": (
        "config.RunConfig.seeds = (1, 'b')",
        ("run.gin:10", "seeds=(1, 'b')", "tuple[int, ...]"),
    ),
    "wrong length of a tuple": (
        "from toy.optim import adam\nconfig.RunConfig.optimizer = @adam.Adam()\nadam.Adam.betas = (0.9,)",
        ("run.gin:12", "optimizer.betas=(0.9,)", "tuple[float, float]"),
    ),
    "dict": ("config.RunConfig.name = {'a': 1}", ("run.gin:10", "name={'a': 1}", "str")),
    "dataclass of another kind": (
        "layers.ModelConfig.norm = @config.Phase()",
        ("run.gin:10", "model.norm=@config.Phase()", "NormConfig"),
    ),
    "not of the base class": (
        "config.RunConfig.optimizer = @lion.Lion()\nlion.Lion.schedule = @config.Phase()",
        ("run.gin:11", "optimizer.schedule=@config.Phase()", "Schedule"),
    ),
    "leaf for a node": (
        "config.RunConfig.optimizer = 'adam'",
        ("run.gin:10", "optimizer='adam'", "Optimizer"),
    ),
    "missing field": (
        "layers.ModelConfig.mixers = (@layers.AttentionConfig(),)",
        ("run.gin:10", "model.mixers[0].heads", "layers.AttentionConfig.heads", "--set model.mixers[0].heads"),
    ),
    "refused by the class": (
        "layers.ModelConfig.mixers = (@layers.AttentionConfig(),)\nlayers.AttentionConfig.heads = 0",
        ("run.gin:10", "model.mixers[0]", "layers.AttentionConfig", "heads=0", 1),
    ),
    "class that is not called": (
        "layers.ModelConfig.norm = @layers.NormConfig",
        ("run.gin:10", "@layers.NormConfig", "@layers.NormConfig()"),
    ),
    "bound twice": (
        "config.Phase.steps = 20",
        ("run.gin:10", "config.Phase.steps", "run.gin:8"),
    ),
    "key of a function": (
        "layers.tiny.width = 3",
        ("run.gin:10", "layers.tiny", "function"),
    ),
    "string without quotes": (
        "config.RunConfig.name = abc",
        ("run.gin:10", "'abc'", "quotes"),
    ),
    "no statement": ("config.RunConfig", ("run.gin:10", "statement")),
    "number beyond floats": (
        "config.RunConfig.clip = 1e999",
        ("run.gin:10", "1e999", 0, "2.3e-308", "1.7e308"),
    ),
    "number that a float rounds to nothing": (
        "config.RunConfig.clip = 3e-3000",
        ("run.gin:10", "3e-3000", 0, "2.3e-308", "1.7e308"),
    ),
    "number of 400 digits": (
        f"config.RunConfig.clip = {'9' * 400}",
        ("run.gin:10", "9" * 60 + "...", 400, 0, "2.3e-308", "1.7e308"),
    ),
    "number of more digits than Python reads": (
        f"config.RunConfig.name = {'9' * 5000}",
        ("run.gin:10", "9" * 60 + "...", 5000, 0, "2.3e-308", "1.7e308"),
    ),
    "number in a macro of a tuple": (
        "config.RunConfig.seeds = (%n, 1)\nn = 1e999",
        ("run.gin:11", "1e999", 0, "2.3e-308", "1.7e308"),
    ),
    "minus that gin would drop before a macro": (
        "config.RunConfig.clip = -%n\nn = 1.0",
        ("run.gin:10", "minus"),
    ),
    "minus that gin would drop before a reference": (
        "config.RunConfig.optimizer = -@lion.Lion()",
        ("run.gin:10", "minus"),
    ),
    "escape that is none": (
        r"config.RunConfig.name = '\e'",
        ("run.gin:10", r"'\e'"),
    ),
    "half of a surrogate pair": (
        r"config.RunConfig.name = '\ud800'",
        ("run.gin:10", r"name='\ud800'", "UTF-8"),
    ),
    "key of a dict that cannot be one": ("config.RunConfig.name = {[]: 1}", ("run.gin:10", "unhashable", "list")),
    "zero byte": ("config.RunConfig.name = 'a\0'", ("run.gin", "zero byte")),
    "brackets beyond Python's": (
        f"config.RunConfig.seeds = {'[' * 3000}",
        ("run.gin:10", "nested"),
    ),
    "macros beyond Python's depth": (
        "\n".join(f"a{i} = %a{i + 1}" for i in range(3000)) + "\na3000 = 1\nconfig.RunConfig.name = %a0",
        ("run.gin", "nested"),
    ),
    "key of what is no class": (
        "layers.dataclass.x = 1",
        ("run.gin:10", "layers.dataclass", "`def dataclass() -> Class`"),
    ),
    "key below a value": (
        "layers.__name__.x.y = 1",
        ("run.gin:10", "layers.__name__.x", "toy.layers.__name__", "'x'"),
    ),
    "node in a tuple where there is none": (
        "layers.ModelConfig.norm = (@layers.NormConfig(),)",
        ("run.gin:10", "model.norm[0]=@layers.NormConfig()", "tuple"),
    ),
    "node within itself": (
        "config.RunConfig.optimizer = @lion.Lion()\nlion.Lion.schedule = @lion.Lion()",
        ("run.gin:11", "@lion.Lion()", "itself"),
    ),
    "macro within itself": (
        "a = %b\nb = (%a,)\nconfig.RunConfig.seeds = %a",
        ("run.gin:11", "%a", "itself"),
    ),
}


NOT_OURS = {  # but of gin or Python
    "string without quotes": {"<gin>": "(?<=run.gin:10: ).*(?='abc')"},
    "no statement": {"<gin>": "(?<=run.gin:10: ).*"},
    "escape that is none": {"<python>": "(?<=run.gin:10: ).*"},
    "key of a dict that cannot be one": {"<python>": "(?<=run.gin:10: ).*"},
    "brackets beyond Python's": {"<python>": "(?<=run.gin:10: ).*"},
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_key_line_and_nearest_name(write, name):
    extra, facts = ERRORS[name]
    check(_error(write(RUN + extra + "\n")), *facts, varies=NOT_OURS.get(name))


def test_reference_that_cannot_make_a_configuration_is_refused(write):
    message = _error(write(RUN.replace("@layers.ModelConfig()", "@layers.sized()")))
    check(message, "run.gin:6", "layers.sized", "`def sized() -> Class`")


def test_import_of_what_is_in_a_module_is_refused_with_the_module(write):
    head = "from __gin__ import dynamic_registration\nfrom toy.config import RunConfig\n"
    check(_error(write(RUN, head=head)), "toy.config.RunConfig", "`from toy import config`", "config.RunConfig")


def test_bracket_left_open_is_refused_with_a_line(write):
    message = _error(write(RUN + "config.RunConfig.seeds = (1,"))
    assert re.fullmatch(r"run.gin:1[01]: .*EOF in multi-line statement", message), message


def test_import_above_dynamic_registration_is_refused(write):
    message = _error(write(RUN, head="from toy import config\n"))
    check(message, "run.gin:1", "`from __gin__ import dynamic_registration`")


def test_error_in_an_included_file_names_that_file_once(write):
    write(RUN + "config.Phase.stepz = 1\n", "base.gin")
    check(_error(write('include "base.gin"\n')), "base.gin:10", "config.Phase", "'stepz'")


def test_file_that_includes_itself_is_refused(write):
    write('include "run.gin"\n', "base.gin")
    check(_error(write('include "base.gin"\n')), "base.gin:5", "'run.gin'")


def test_missing_files_are_named_with_the_nearest(write):
    write(RUN, "quickstart.gin")
    with refused(FileNotFoundError, "'quikstart.gin'", "'quickstart.gin'"):
        load("quikstart.gin", root=RunConfig)
    with refused(FileNotFoundError, "run.gin:5", "'quickstrat.gin'", "'quickstart.gin'"):
        load(write('include "quickstrat.gin"\n'), root=RunConfig)


def test_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "model.gin").write_bytes(b"\xff\xfe\x00")
    check(_error(tmp_path / "model.gin"), tmp_path / "model.gin", "UTF-8")


def test_file_without_the_root_is_refused(write):
    check(_error(write("lion.Lion.b1 = 0.5\n")), "run.gin", "config.RunConfig")


def test_load_leaves_no_gin_state_and_classes_as_they_were(write):
    before = (gin.config_str(), dict(gin.config._REGISTRY.items()), RunConfig.__init__, type(RunConfig))
    path = write(FULL)
    assert load(path, root=RunConfig) == load(path, root=RunConfig)
    assert before == (gin.config_str(), dict(gin.config._REGISTRY.items()), RunConfig.__init__, type(RunConfig))
    assert Lion() == Lion(b1=0.9, schedule=Constant()) and type(load(path, root=RunConfig).config) is RunConfig


def test_failed_load_does_not_touch_the_next(write):
    _error(write(RUN + "lion.Lion.b1 = 0.5\n", "bad.gin"))
    assert load(write(RUN), root=RunConfig).config.optimizer == Adam()
