"""GPT-2: LayerNorm, a bias in every linear, learned positions, matrices [inputs, outputs], a tied head."""

from collections.abc import Iterator
from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.embeddings import LearnedPositions
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.mixers.attention import LINEARS, AttentionConfig
from jaxtrain.nn.mixers.scores import Scores
from jaxtrain.nn.norms.layer_norm import LayerNormConfig
from jaxtrain.nn.positions import NoPositions
from jaxtrain.surgery.huggingface.family import Family, attention_of, epsilon_of, head_of, mlp_of, write_activation
from jaxtrain.surgery.huggingface.layout import Tensor, as_is, conv1d, conv1d_of, in_layers
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
    """GPT-2. The dropout of the residual stream is kept; our attention has no dropout of its weights."""

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
            positions=NoPositions(),
            scores=None if s["scale_attn_weights"] else Scores(scale=1.0),
            biases=LINEARS,
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
            embedding=LearnedPositions(),
            head=head_of(tied=s["tie_word_embeddings"]),
            dropout=float(s["resid_pdrop"]),
        )

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        mixer, mlp = attention_of(config.pattern[0]), mlp_of(config.pattern[0].mlp)
        return {
            "vocab_size": config.vocab_size,
            "n_embd": config.d_model,
            "n_layer": config.layers,
            "n_head": mixer.heads,
            "n_inner": None if mlp.hidden == 4 * config.d_model else mlp.hidden,
            "n_positions": config.max_length,
            "activation_function": write_activation(mlp.activation, tanh="gelu_new"),
            "layer_norm_epsilon": epsilon_of(config.norm),
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": 0.0,
            "scale_attn_weights": mixer.scores is None,
            "tie_word_embeddings": config.head.tied,
        }

    def tensors(self, config: DecoderConfig) -> Iterator[Tensor]:
        table = (config.vocab_size, config.d_model)
        yield as_is("transformer.wte.weight", table, "embedding", "table")
        yield as_is("transformer.wpe.weight", (config.max_length, config.d_model), "positions", "table")
        yield from in_layers(config, "transformer.h.", _block_tensors)
        yield from _norm("transformer.ln_f", config.d_model, "final_norm")
        if not config.head.tied:
            yield as_is("lm_head.weight", table, "output", "kernel")


def _block_tensors(config: DecoderConfig, block: BlockConfig) -> list[Tensor]:
    attention = attention_of(block)
    D, F, H = (config.d_model,), (mlp_of(block.mlp).hidden,), (attention.heads, attention.head_dim)
    return [
        *_norm("ln_1", config.d_model, "mixer_norm"),
        *conv1d_of("attn.c_attn", D, H, ("mixer", "query"), ("mixer", "key"), ("mixer", "value")),
        *conv1d("attn.c_proj", H, D, "mixer", "output"),
        *_norm("ln_2", config.d_model, "mlp_norm"),
        *conv1d("mlp.c_fc", D, F, "mlp", "up"),
        *conv1d("mlp.c_proj", F, D, "mlp", "down"),
    ]


def _norm(name: str, width: int, ours: str) -> list[Tensor]:
    return [as_is(f"{name}.weight", (width,), ours, "scale"), as_is(f"{name}.bias", (width,), ours, "bias")]
