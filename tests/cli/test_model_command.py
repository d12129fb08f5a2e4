"""`jaxtrain model`: every parameter once, in its layer, and the memory of what training keeps."""

import re

import jax
import pytest
from tiny import bytes_of, size_of
from tiny_run import CONFIGS, QUICKSTART, sets

from jaxtrain.cli.config_file import load
from jaxtrain.cli.main import main
from jaxtrain.cli.model import variables
from jaxtrain.models.decoder import abstract_model


@pytest.fixture(scope="module")
def printed():
    def command(*words):
        with pytest.MonkeyPatch.context() as patch:
            lines: list[str] = []
            patch.setattr("builtins.print", lambda text: lines.append(text))
            assert main(["model", *map(str, words)]) == 0
        return "\n".join(lines)

    return command


def test_layers_shapes_parameters_and_memory_are_listed(printed):
    config, text = load(QUICKSTART).config, printed(QUICKSTART)
    shapes = abstract_model(config.model).shapes
    assert "block 0, mixer: 196,608 parameters" in text  # 4 repeats of 128 x (2 x 4 + 2 x 2) x 32
    assert re.search(r"query\.kernel +4 of 128 x 4 x 32  \(embed, heads, head_dim\)  float32", text)
    layers = re.findall(r"^(\S.*): .* parameters,", text, flags=re.M)
    assert layers[0] == "embedding" and layers[-1] == "output" and layers[1] == "block 0, mixer_norm"
    assert sum(int(n.replace(",", "")) for n in re.findall(r": ([\d,]+) parameters,", text)) == size_of(shapes.params)
    assert f"{config.model.flops_per_token(256):,.0f} FLOPs a token" in text
    assert "blocks: 4 x 1 layers, unrolled on one CPU, in a scan elsewhere" in text
    assert (
        f"params {bytes_of(shapes.params) / 1e6:.3g} MB, optimizer {2 * bytes_of(shapes.params) / 1e6:.3g} MB" in text
    )


def test_frozen_weights_and_averages_are_told_apart(printed, tmp_path):
    adapted = {
        "model.trainable": "@Adapters()",
        "model.pattern[0].mlp.linear": "@LoRA(rank=2, base=@NF4())",
        "hooks": "(@ExponentialMovingAverage(),)",
    }
    text = printed(QUICKSTART, *sets(adapted))
    assert re.search(r"up\.base\.codes +4 of .* frozen, int4", text), text
    [trained] = re.findall(r"parameters, ([\d,]+) of them trained", text)
    size = int(trained.replace(",", ""))
    assert f"params {4 * size / 1e3:.3g} kB" in text and f"averages {4 * size / 1e3:.3g} kB" in text


def test_what_a_token_computes_in_evaluation_is_told(printed):
    tree = "@FastFeedForwardConfig(levels=3, leaf=@MLPConfig(hidden=48), hardening=1.0)"
    text = printed(QUICKSTART, *sets({"model.pattern[0].mlp": tree}))
    assert "model.pattern[0].mlp: in evaluation a token computes 51 of 391 neurons, 13.0%" in text


@pytest.mark.parametrize("name", ["moe_tiny", "hybrid_tiny"])
def test_every_array_is_listed_once(name):
    model = load(CONFIGS / f"{name}.gin").config.model
    abstract = abstract_model(model)
    found = list(variables(abstract))
    assert sum(variable.size for variable in found) == sum(leaf.size for leaf in jax.tree.leaves(abstract.shapes))
    assert len({(variable.layer, variable.name) for variable in found}) == len(found)
