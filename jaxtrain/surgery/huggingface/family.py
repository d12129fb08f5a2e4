"""What a family of published models is to the converter, and what all of them write alike."""

import abc
from collections.abc import Iterator, Mapping
from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.rope import LinearScaling, Llama3Scaling, RopeConfig
from jaxtrain.surgery.huggingface.layout import Tensor
from jaxtrain.surgery.huggingface.settings import Settings


class Family(abc.ABC):
    """Both directions of a family's configuration, and its tensors.

    `prefix` begins the names of all tensors but the head's; some published files leave it out. `ignored` is a regular
    expression for buffers that old versions saved among the weights. `layers` is the setting that counts them, `table`
    the tensor that a tied head shares.
    """

    model_type: str
    architecture: str
    defaults: Mapping[str, Any]
    prefix: str
    ignored: str
    layers: str
    table: str

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
        """Return the config.json of a decoder of this family; of another, something that reads as another decoder."""

    @abc.abstractmethod
    def tensors(self, config: DecoderConfig) -> Iterator[Tensor]:
        """Yield every tensor, in the order of the model."""


def write_rope(rope: RopeConfig | None) -> dict[str, Any]:
    """Return the settings in the form of transformers 4, which 5 reads too."""
    rope = rope or RopeConfig()  # no rotary positions: reads back as another decoder, which is how it is refused
    match rope.scaling:
        case None:
            scaling = None
        case LinearScaling(factor=factor):
            scaling = {"rope_type": "linear", "factor": factor}
        case Llama3Scaling(factor=factor, low=low, high=high, original_length=length):
            scaling = {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": length,
            }
    return {"rope_theta": rope.theta, "rope_scaling": scaling}


def write_activation(activation: str, *, tanh: str) -> str:
    """Return a family's name for an activation; the tanh form of GELU has two."""
    return tanh if activation == "gelu_tanh" else activation


def shortest_pattern(blocks: tuple[BlockConfig, ...]) -> tuple[tuple[BlockConfig, ...], int]:
    """Return the shortest pattern that, repeated, gives the layers, and how often."""
    for length in range(1, len(blocks) + 1):
        repeats, rest = divmod(len(blocks), length)
        if not rest and blocks[:length] * repeats == blocks:
            return blocks[:length], repeats
    raise ValueError("num_hidden_layers must be at least 1")
