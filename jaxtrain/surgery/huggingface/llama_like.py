"""The base class of families with the settings of Llama, which a family changes where it differs.

Attention dropout is left out, as in the layer itself: it changes training only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.models.stacks import shortest
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.mixers.attention import LINEARS, AttentionConfig
from jaxtrain.nn.mixers.base import MixerConfig
from jaxtrain.nn.mixers.scores import Scores
from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.nn.norms.layer_norm import LayerNormConfig
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.positions import Positions, RotaryEmbedding
from jaxtrain.nn.qk_norms import AllHeads, PerHead
from jaxtrain.surgery.huggingface.family import (
    Family,
    attention_of,
    epsilon_of,
    head_of,
    mlp_of,
    write_activation,
)
from jaxtrain.surgery.huggingface.layout import Axes, Tensor, as_is, in_layers, torch_linear
from jaxtrain.surgery.huggingface.rope import RopeKeys, read_rope, write_rope
from jaxtrain.surgery.huggingface.settings import Settings
from jaxtrain.surgery.huggingface.windows import Windows, mask_of, same_windows

DEFAULTS: dict[str, Any] = {  # of most families here
    "num_key_value_heads": None,
    "head_dim": None,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "layer_types": None,
}


class LlamaLike(Family):
    """A family with the settings of Llama.

    Settings: `epsilon` and `activation` are the names of two that differ; `biases` names those of attention and of the
    feed-forward layer, or None where there never is one. The sizes in `derived` follow from others and are not in
    config.json. Tensors: `norms` gives the name of each norm of a block; the others are as Llama's.
    """

    epsilon: ClassVar[str] = "rms_norm_eps"
    activation: ClassVar[str] = "hidden_act"
    biases: ClassVar[tuple[str | None, str | None]] = ("attention_bias", None)
    derived: ClassVar[tuple[str, ...]] = ()
    rope_keys: ClassVar[RopeKeys] = RopeKeys()
    norms: ClassVar[Mapping[str, str]] = {
        "mixer_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
    }
    prefix = "model."
    ignored = r".*\.rotary_emb\.inv_freq"
    layers = "num_hidden_layers"
    table = "model.embed_tokens.weight"
    stack: ClassVar[str] = "model.layers."
    last_norm: ClassVar[str | None] = "model.norm"

    # The settings.

    def windows(self, s: Settings) -> Windows:
        """Return the window of each layer."""
        return same_windows(s, None)

    def write_windows(self, windows: Windows) -> dict[str, Any]:
        """Return the settings that say the windows."""
        return {}

    def norm(self, epsilon: float) -> NormConfig:
        return RMSNormConfig(epsilon=epsilon)

    def positions(self, s: Settings, layer: int, window: int | None) -> Positions:
        return read_rope(s, self.rope_keys)

    def write_rope(self, attentions: Sequence[AttentionConfig]) -> dict[str, Any]:
        """Return the settings that say the rotary embeddings of the layers."""
        return write_rope(first_rotary(attentions), self.rope_keys)

    def attention(self, s: Settings, common: AttentionConfig) -> AttentionConfig:
        """Return the attention of a layer, from what all families have in common."""
        return common

    def mlp(self, s: Settings, hidden: int, activation: str, bias: bool) -> FeedForwardConfig:
        return GatedMLPConfig(hidden=hidden, activation=activation, bias=bias)

    def mixer(self, s: Settings, layer: int, window: int | None) -> MixerConfig:
        """Return the mixer of a layer."""
        heads = s["num_attention_heads"]
        attention = AttentionConfig(
            heads=heads,
            kv_heads=self._size(s, "num_key_value_heads", heads),
            head_dim=self._size(s, "head_dim", s["hidden_size"] // max(heads, 1)),
            positions=self.positions(s, layer, window),
            mask=mask_of(window),
            biases=LINEARS if self._bias(s, self.biases[0], "attention_bias") else (),
        )
        return self.attention(s, attention)

    def first_layers(self, s: Settings) -> int:
        """Return how many layers come first that are not as the others: their feed-forward layers are dense."""
        return 0

    def block(self, s: Settings, common: BlockConfig) -> BlockConfig:
        return common

    def whole(self, s: Settings, common: DecoderConfig) -> DecoderConfig:
        return common

    def dense(self, block: BlockConfig) -> MLPConfig | GatedMLPConfig:
        """Return the MLP of a block. Raises ValueError for another feed-forward layer."""
        return mlp_of(block.mlp)

    def write_more(self, config: DecoderConfig) -> dict[str, Any]:
        """Return what the family writes beside, or in place of, the common settings."""
        return {}

    def decoder(self, s: Settings) -> DecoderConfig:
        norm = self.norm(float(s[self.epsilon]))
        blocks = tuple(self._block(s, layer, window) for layer, window in enumerate(self.windows(s)))
        first = self.first_layers(s)
        if not blocks[first:]:
            raise ValueError("num_hidden_layers must be at least 1")
        pattern, repeats = shortest(blocks[first:])
        common = DecoderConfig(
            vocab_size=s["vocab_size"],
            d_model=s["hidden_size"],
            first=blocks[:first],
            repeats=repeats,
            pattern=pattern,
            max_length=s["max_position_embeddings"],
            norm=norm,
            head=head_of(tied=s["tie_word_embeddings"]),
        )
        return self.whole(s, common)

    def _block(self, s: Settings, layer: int, window: int | None) -> BlockConfig:
        bias = self._bias(s, self.biases[1], "mlp_bias")
        build = LlamaLike.mlp if layer < self.first_layers(s) else type(self).mlp
        mlp = build(self, s, s["intermediate_size"], s.activation(self.activation), bias)
        return self.block(s, BlockConfig(mixer=self.mixer(s, layer, window), mlp=mlp))

    def _bias(self, s: Settings, key: str | None, usual: str) -> bool:
        if key is not None:
            return s[key]
        s.require(f"{self.architecture} has no such setting", **{usual: False})
        return False

    def _size(self, s: Settings, key: str, usual: int) -> int:
        if key not in self.derived:
            return s.or_else(key, usual)
        s.require(f"{self.architecture} derives it", **{key: usual})
        return usual

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        written = {
            "vocab_size": config.vocab_size,
            "hidden_size": config.d_model,
            "num_hidden_layers": config.layers,
            "max_position_embeddings": config.max_length,
            self.epsilon: epsilon_of(config.norm),
            "tie_word_embeddings": config.head.tied,
            **self.write_mixers(config),
            **self.write_mlp(config),
            **self.write_more(config),
        }
        return {key: value for key, value in written.items() if key not in self.derived}

    def write_mixers(self, config: DecoderConfig) -> dict[str, Any]:
        """Return the settings of the mixers."""
        attentions = [attention_of(block) for block in config.blocks]
        mixer, bias = attentions[0], self.biases[0]
        return {
            "num_attention_heads": mixer.heads,
            "num_key_value_heads": mixer.kv_heads,
            "head_dim": mixer.head_dim,
            **({bias: bool(mixer.biases)} if bias else {}),
            **self.write_rope(attentions),
            **self.write_windows(tuple(attention.mask.span.window for attention in attentions)),
        }

    def write_mlp(self, config: DecoderConfig) -> dict[str, Any]:
        """Return the settings of the dense MLPs."""
        mlp, bias = self.dense(config.pattern[0]), self.biases[1]
        return {
            "intermediate_size": mlp.hidden,
            **({bias: mlp.bias} if bias else {}),
            self.activation: write_activation(mlp.activation, tanh="gelu_pytorch_tanh"),
        }

    # The tensors.

    def tensors(self, config: DecoderConfig) -> Iterator[Tensor]:
        table = (config.vocab_size, config.d_model)
        yield as_is(self.table, table, "embedding", "table")
        yield from self.embedding_tensors(config)
        yield from in_layers(config, self.stack, self._block_tensors)
        if self.last_norm:
            yield from norm_tensors(self.last_norm, config.norm, config.d_model, "final_norm")
        yield from self.head_tensors(config)
        if not config.head.tied:
            yield as_is(self.head, table, "output", "kernel")

    def _block_tensors(self, config: DecoderConfig, block: BlockConfig) -> list[Tensor]:
        D = (config.d_model,)
        tensors = [*self.mixer_tensors(block, D), *self.feed_forward_tensors(block, D)]
        for ours in block.join.norms:
            tensors += norm_tensors(self.norms[ours], config.norm, config.d_model, ours)
        return tensors

    def mixer_tensors(self, block: BlockConfig, D: Axes) -> list[Tensor]:
        mixer = attention_of(block)
        H, J = (mixer.heads, mixer.head_dim), (mixer.kv_heads, mixer.head_dim)
        tensors = self.attention_tensors(mixer, D, H, J)
        if isinstance(mixer.qk_norm, PerHead | AllHeads):  # no family has another
            for ours, theirs, heads in (("query_norm", "q_norm", mixer.heads), ("key_norm", "k_norm", mixer.kv_heads)):
                width = mixer.head_dim * (heads if isinstance(mixer.qk_norm, AllHeads) else 1)
                tensors += norm_tensors(f"self_attn.{theirs}", mixer.qk_norm.norm, width, "mixer", ours)
        return tensors

    def embedding_tensors(self, config: DecoderConfig) -> list[Tensor]:
        """Return the tensors of the embedding beside its table."""
        return []

    def head_tensors(self, config: DecoderConfig) -> list[Tensor]:
        """Return the tensors of the head beside its matrix."""
        return []

    def attention_tensors(self, mixer: AttentionConfig, D: Axes, H: Axes, J: Axes) -> list[Tensor]:
        return [
            *torch_linear("self_attn.q_proj", D, H, "mixer", "query", bias="query" in mixer.biases),
            *torch_linear("self_attn.k_proj", D, J, "mixer", "key", bias="key" in mixer.biases),
            *torch_linear("self_attn.v_proj", D, J, "mixer", "value", bias="value" in mixer.biases),
            *torch_linear("self_attn.o_proj", H, D, "mixer", "output", bias="output" in mixer.biases),
        ]

    def feed_forward_tensors(self, block: BlockConfig, D: Axes) -> list[Tensor]:
        mlp = self.dense(block)
        return self.mlp_tensors(mlp.bias, D, (mlp.hidden,))

    def mlp_tensors(self, bias: bool, D: Axes, F: Axes) -> list[Tensor]:
        return [
            *torch_linear("mlp.gate_proj", D, F, "mlp", "gate", bias=bias),
            *torch_linear("mlp.up_proj", D, F, "mlp", "up", bias=bias),
            *torch_linear("mlp.down_proj", F, D, "mlp", "down", bias=bias),
        ]


def first_rotary(attentions: Sequence[AttentionConfig]) -> RotaryEmbedding | None:
    """Return the rotary embeddings of the first layer that has any."""
    return next((a.positions for a in attentions if isinstance(a.positions, RotaryEmbedding)), None)


def norm_tensors(name: str, norm: NormConfig, width: int, *path: str) -> list[Tensor]:
    """Return the tensors of a norm."""
    scale = as_is(f"{name}.weight", (width,), *path, "scale")
    has_bias = isinstance(norm, LayerNormConfig) and norm.bias
    return [scale, as_is(f"{name}.bias", (width,), *path, "bias")] if has_bias else [scale]


def write_two_ropes(attentions: Sequence[AttentionConfig], full: RopeKeys, sliding: RopeKeys) -> dict[str, Any]:
    """Return the rotary settings of a family whose layers with a window have other ones."""
    written: dict[str, Any] = {}
    for keys, slides in ((full, False), (sliding, True)):
        alike = [attention for attention in attentions if bool(attention.mask.span.window) is slides]
        written |= write_rope(first_rotary(alike), keys)
    return written


def with_scores(attention: AttentionConfig, scale: float, softcap: float | None = None) -> AttentionConfig:
    """Return the attention with a scale and a soft cap of its scores, which are None where they are the usual ones."""
    usual = scale == attention.head_dim**-0.5
    if usual and softcap is None:
        return attention
    return replace(attention, scores=Scores(scale=None if usual else scale, softcap=softcap))


def score_scale(attention: AttentionConfig) -> float:
    """Return what multiplies the scores of attention."""
    if attention.scores is None or attention.scores.scale is None:
        return attention.head_dim**-0.5
    return attention.scores.scale
