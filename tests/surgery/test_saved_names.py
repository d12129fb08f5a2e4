"""Trees as the first layout of checkpoints had them; tests/train/test_layouts.py restores one."""

import dataclasses

import jax
import pytest
from tiny import PRESETS, variant

from jaxtrain.models.decoder import abstract_model
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.heads import LinearHead
from jaxtrain.nn.mixers.decay import ChannelDecay, StepDecay
from jaxtrain.nn.mixers.delta_rule import DeltaRuleConfig
from jaxtrain.nn.mixers.linear_attention import LinearAttentionConfig
from jaxtrain.surgery.layouts import as_now, as_saved

SIZES = {"heads": 4, "kv_heads": 2, "head_dim": 8, "value_dim": 12}
RECURRENT = [LinearAttentionConfig(**SIZES, decay=ChannelDecay()), DeltaRuleConfig(**SIZES, decay=StepDecay())]
CONFIGS = {
    "gpt2": dataclasses.replace(PRESETS["gpt2"], head=LinearHead()),
    "qwen3": PRESETS["qwen3"],
    "recurrent": variant(pattern=tuple(BlockConfig(mixer=m, mlp=GatedMLPConfig(hidden=64)) for m in RECURRENT)),
}
FIRST = {  # as the code wrote them before layers had linears; {} is a block
    "gpt2": """
        {}0.mixer.key {}0.mixer.key_bias {}0.mixer.output {}0.mixer.output_bias {}0.mixer.query {}0.mixer.query_bias
        {}0.mixer.value {}0.mixer.value_bias {}0.mixer_norm.bias {}0.mixer_norm.scale {}0.mlp.down {}0.mlp.down_bias
        {}0.mlp.up {}0.mlp.up_bias {}0.mlp_norm.bias {}0.mlp_norm.scale embedding.table final_norm.bias
        final_norm.scale output.kernel positions.table""",
    "qwen3": """
        {}0.mixer.key {}0.mixer.key_norm.scale {}0.mixer.output {}0.mixer.query {}0.mixer.query_norm.scale
        {}0.mixer.value {}0.mixer_norm.scale {}0.mlp.down {}0.mlp.gate {}0.mlp.up {}0.mlp_norm.scale embedding.table
        final_norm.scale""",
    "recurrent": """
        {}0.mixer.decay.bias {}0.mixer.decay.down {}0.mixer.decay.up {}0.mixer.heads.gate {}0.mixer.heads.key
        {}0.mixer.heads.norm.scale {}0.mixer.heads.output {}0.mixer.heads.query {}0.mixer.heads.value
        {}0.mixer_norm.scale {}0.mlp.down {}0.mlp.gate {}0.mlp.up {}0.mlp_norm.scale {}1.mixer.beta
        {}1.mixer.decay.bias {}1.mixer.decay.log_rate {}1.mixer.decay.weight {}1.mixer.heads.gate {}1.mixer.heads.key
        {}1.mixer.heads.norm.scale {}1.mixer.heads.output {}1.mixer.heads.query {}1.mixer.heads.value
        {}1.mixer_norm.scale {}1.mlp.down {}1.mlp.gate {}1.mlp.up {}1.mlp_norm.scale embedding.table final_norm.scale
        output.kernel""",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_has_its_place_in_the_first_layout(name):
    shapes = abstract_model(CONFIGS[name]).shapes.params
    found = jax.tree_util.tree_leaves_with_path(as_saved(shapes, 1))
    assert sorted(FIRST[name].replace("{}", "blocks.blocks.").split()) == sorted(_name(path) for path, _ in found)


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def test_moments_are_found_where_their_parameters_were_and_come_back():
    """Also where a moment is a pair of arrays, or has a place with no array."""
    shapes = abstract_model(CONFIGS["recurrent"]).shapes.params
    moments = jax.tree.map(lambda x: (x, None, x), shapes)
    progress = {"opt_state": ({"mu": moments}, ()), "step": 3}
    saved = as_saved(progress, 1)
    assert saved["params"] == {} and saved["step"] == 3
    first, second, *_ = jax.tree_util.tree_leaves_with_path(saved["opt_state"][0]["mu"]["blocks"])
    assert [_name(first[0]), _name(second[0])] == ["blocks.0.mixer.decay.bias.0", "blocks.0.mixer.decay.bias.2"]
    assert as_now(saved, progress, 1) == progress
