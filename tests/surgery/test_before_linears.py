"""Every parameter of the first layout has its place in today's, and no other place is there."""

import dataclasses

import jax
import pytest
from tiny import PRESETS, variant

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.mixers.decay import ChannelDecay, StepDecay
from jaxtrain.nn.mixers.delta_rule import DeltaRuleConfig
from jaxtrain.nn.mixers.linear_attention import LinearAttentionConfig
from jaxtrain.surgery.before_linears import moved

SIZES = {"heads": 4, "kv_heads": 2, "head_dim": 8, "value_dim": 12}
RECURRENT = [LinearAttentionConfig(**SIZES, decay=ChannelDecay()), DeltaRuleConfig(**SIZES, decay=StepDecay())]
CONFIGS = {
    "gpt2": dataclasses.replace(PRESETS["gpt2"], tied_embeddings=False),
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


def _today(config: DecoderConfig) -> list[str]:
    _, shapes, _ = abstract_model(config)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return [".".join(str(entry.key) for entry in path) for path, _ in leaves]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_first_layout_maps_onto_todays(name):
    first = FIRST[name].replace("{}", "blocks.blocks.").split()
    found = [".".join(moved(tuple(path.split(".")))) for path in first]
    assert sorted(found) == sorted(_today(CONFIGS[name]))


def test_what_stands_around_a_parameter_stays():
    moments = ("opt_state", 0, "mu", "blocks", "blocks", 0, "mixer", "heads", "query", "codes")
    assert moved(moments) == (*moments[:-1], "kernel", "codes")
    assert moved(("opt_state", 0, "count")) == ("opt_state", 0, "count")
