"""GPT-2: LayerNorm, biases everywhere, learned positions, matrices [inputs, outputs], a tied head."""

from collections.abc import Iterator
from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.norms.layer_norm import LayerNormConfig
from jaxtrain.surgery.huggingface.family import Family, write_activation
from jaxtrain.surgery.huggingface.layout import Tensor, as_is, in_layers, inputs_first, side_by_side
from jaxtrain.surgery.huggingface.settings import Settings

DEFAULTS = {
    "n_positions": 1024,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "resid_pdrop": 0.1,
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
}


class GPT2(Family):
    """The dropout of the residual stream is kept; that of attention weights the layer does not have."""

    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    prefix = "transformer."
    ignored = r".*\.attn\.(masked_)?bias"  # causal masks
    layers = "n_layer"
    table = "transformer.wte.weight"
    defaults = DEFAULTS

    def decoder(self, s: Settings) -> DecoderConfig:
        s.require_same("n_ctx", "n_positions")
        d_model, heads = s["n_embd"], s["n_head"]
        attention = AttentionConfig(
            heads=heads,
            kv_heads=heads,
            head_dim=d_model // max(heads, 1),
            rope=None,
            bias=True,
            scale=None if s["scale_attn_weights"] else 1.0,
        )
        hidden, activation = s.or_else("n_inner", 4 * d_model), s.activation("activation_function")
        mlp = MLPConfig(hidden=hidden, activation=activation, bias=True)
        return DecoderConfig(
            vocab_size=s["vocab_size"],
            d_model=d_model,
            repeats=s["n_layer"],
            pattern=(BlockConfig(mixer=attention, mlp=mlp),),
            max_length=s["n_positions"],
            norm=LayerNormConfig(epsilon=float(s["layer_norm_epsilon"])),
            tied_embeddings=s["tie_word_embeddings"],
            learned_positions=True,
            dropout=float(s["resid_pdrop"]),
        )

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        mixer, mlp = config.pattern[0].mixer, config.pattern[0].mlp
        return {
            "vocab_size": config.vocab_size,
            "n_embd": config.d_model,
            "n_layer": config.layers,
            "n_head": mixer.heads,
            "n_inner": None if mlp.hidden == 4 * config.d_model else mlp.hidden,
            "n_positions": config.max_length,
            "activation_function": write_activation(mlp.activation, tanh="gelu_new"),
            "layer_norm_epsilon": config.norm.epsilon,
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": 0.0,
            "scale_attn_weights": mixer.scale is None,
            "tie_word_embeddings": config.tied_embeddings,
        }

    def tensors(self, config: DecoderConfig) -> Iterator[Tensor]:
        table = (config.vocab_size, config.d_model)
        yield as_is("transformer.wte.weight", table, "embedding", "table")
        yield as_is("transformer.wpe.weight", (config.max_length, config.d_model), "positions", "table")
        yield from in_layers(config, "transformer.h.", _block_tensors)
        yield from _norm("transformer.ln_f", config.d_model, "final_norm")
        if not config.tied_embeddings:
            yield as_is("lm_head.weight", table, "output", "kernel")


def _block_tensors(config: DecoderConfig, block: BlockConfig) -> list[Tensor]:
    D, F, H = (config.d_model,), (block.mlp.hidden,), (block.mixer.heads, block.mixer.head_dim)
    qkv = [("mixer", name) for name in ("query", "key", "value")]
    return [
        *_norm("ln_1", config.d_model, "mixer_norm"),
        side_by_side("attn.c_attn.weight", D, H, *qkv),
        side_by_side("attn.c_attn.bias", (), H, *((mixer, f"{name}_bias") for mixer, name in qkv)),
        inputs_first("attn.c_proj.weight", H, D, "mixer", "output"),
        as_is("attn.c_proj.bias", D, "mixer", "output_bias"),
        *_norm("ln_2", config.d_model, "mlp_norm"),
        inputs_first("mlp.c_fc.weight", D, F, "mlp", "up"),
        as_is("mlp.c_fc.bias", F, "mlp", "up_bias"),
        inputs_first("mlp.c_proj.weight", F, D, "mlp", "down"),
        as_is("mlp.c_proj.bias", D, "mlp", "down_bias"),
    ]


def _norm(name: str, width: int, ours: str) -> list[Tensor]:
    return [as_is(f"{name}.weight", (width,), ours, "scale"), as_is(f"{name}.bias", (width,), ours, "bias")]
