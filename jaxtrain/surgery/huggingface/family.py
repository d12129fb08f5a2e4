"""The interface of a family of published models, and the settings that all families write alike."""

import abc
from collections.abc import Iterator, Mapping
from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.embeddings import EmbeddingConfig, ScaledEmbedding
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.heads import CappedHead, HeadConfig, LinearHead, ScaledHead, TiedHead
from jaxtrain.nn.joins import Join, ScaledPreNorm
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.nn.norms.layer_norm import LayerNormConfig
from jaxtrain.nn.norms.rms_norm import OffsetRMSNormConfig, RMSNormConfig
from jaxtrain.surgery.huggingface.layout import Tensor
from jaxtrain.surgery.huggingface.settings import Settings


class Family(abc.ABC):
    """The conversion of a family's config.json in both directions, and its tensors.

    `prefix` begins the names of all tensors except the head's; some published files leave it out. `ignored` is a
    regular expression for the names of buffers that old versions saved among the weights. `layers` is the name of the
    setting for the number of layers, `table` the name of the embedding that a tied head shares, `head` that of the
    head. `renamed` has regular expressions for names that some programs save, and what to replace them by. `copies` has
    the names of tensors that some programs save twice, with the names that they have here.
    """

    model_type: str
    architecture: str
    defaults: Mapping[str, Any]
    prefix: str
    ignored: str
    layers: str
    table: str
    head: str = "lm_head.weight"
    renamed: Mapping[str, str] = {}
    copies: Mapping[str, str] = {}

    def passed_over(self, settings: Mapping[str, Any]) -> str:
        """Return a regular expression for the names of tensors that are not read, with this config.json."""
        return self.ignored

    def read(self, settings: Mapping[str, Any]) -> DecoderConfig:
        """Return the decoder of a config.json. Raises ValueError for settings that are not understood."""
        s = Settings(settings, self.defaults)
        config = self.decoder(s)
        s.check_understood()
        return config

    @abc.abstractmethod
    def decoder(self, s: Settings) -> DecoderConfig:
        """Return the decoder of the settings. Raises ValueError for those that the decoder does not have."""

    @abc.abstractmethod
    def write(self, config: DecoderConfig) -> dict[str, Any]:
        """Return the config.json of a decoder.

        For a decoder that the family does not express it may be that of another decoder.

        Raises:
            ValueError: the decoder has a layer of a class that no family has.
        """

    @abc.abstractmethod
    def tensors(self, config: DecoderConfig) -> Iterator[Tensor]:
        """Yield every tensor, in the order of the model."""


def attention_of(block: BlockConfig) -> AttentionConfig:
    """Return the attention of a block. Raises ValueError for another mixer."""
    if not isinstance(block.mixer, AttentionConfig):
        raise ValueError(f"it has the mixer {type(block.mixer).__name__}, which no family has")
    return block.mixer


def mlp_of(layer: FeedForwardConfig) -> MLPConfig | GatedMLPConfig:
    """Return a feed-forward layer that is an MLP. Raises ValueError for another."""
    if not isinstance(layer, MLPConfig | GatedMLPConfig):
        raise ValueError(f"it has the feed-forward layer {type(layer).__name__}, which the family does not have")
    return layer


def head_of(*, tied: bool, scale: float = 1.0, cap: float | None = None) -> HeadConfig:
    """Return the head of a decoder that is tied or not, and may scale or cap its logits."""
    linear = None if tied else Dense()
    if cap is not None:
        return CappedHead(cap=cap, linear=linear)
    if scale != 1.0:
        return ScaledHead(scale=scale, linear=linear)
    return TiedHead() if tied else LinearHead()


def scale_of(part: EmbeddingConfig | Join | HeadConfig) -> float:
    """Return the factor of an embedding, a join or a head, which is 1 for those without one."""
    return part.scale or 1.0 if isinstance(part, ScaledEmbedding | ScaledPreNorm | ScaledHead) else 1.0


def epsilon_of(norm: NormConfig) -> float:
    """Return the epsilon of a norm. Raises ValueError for a norm that no family has."""
    if not isinstance(norm, RMSNormConfig | OffsetRMSNormConfig | LayerNormConfig):
        raise ValueError(f"it has the norm {type(norm).__name__}, which no family has")
    return norm.epsilon


def write_activation(activation: str, *, tanh: str) -> str:
    """Return a family's name for an activation. The tanh form of GELU has the name `tanh`."""
    return tanh if activation == "gelu_tanh" else activation
