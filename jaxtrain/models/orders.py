"""Layers in any order: Zhou et al. (2023, Brainformers), arXiv:2306.00008."""

from collections.abc import Mapping

from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.feed_forward.no_feed_forward import NoFeedForward
from jaxtrain.nn.joins import FeedForwardAlone, MixerAlone
from jaxtrain.nn.mixers.base import MixerConfig
from jaxtrain.nn.mixers.no_mixer import NoMixer


def pattern_of(order: str, layers: Mapping[str, MixerConfig | FeedForwardConfig]) -> tuple[BlockConfig, ...]:
    """Return a pattern with a layer for each letter of `order`, behind a norm of its own.

    Raises:
        ValueError: a letter has no layer, or there is none.
    """
    unknown = sorted(set(order) - layers.keys())
    if unknown or not order:
        raise ValueError(f"order={order!r}: it is to have one or more of the letters {''.join(layers)}")
    return tuple(_alone(layers[letter]) for letter in order)


def _alone(layer: MixerConfig | FeedForwardConfig) -> BlockConfig:
    if isinstance(layer, MixerConfig):
        return BlockConfig(mixer=layer, mlp=NoFeedForward(), join=MixerAlone())
    return BlockConfig(mixer=NoMixer(), mlp=layer, join=FeedForwardAlone())
