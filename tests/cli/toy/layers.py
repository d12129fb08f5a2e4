from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class NormConfig:
    epsilon: float = 1e-6
    kind: Literal["rms", "layer"] = "rms"


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionConfig:
    heads: int
    window: int | None = None
    norm: NormConfig | None = None

    def __post_init__(self):
        if self.heads < 1:
            raise ValueError(f"heads={self.heads}: must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class IdentityConfig:
    """A mixer with nothing to set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    d_model: int
    mixers: tuple[AttentionConfig | IdentityConfig, ...] = ()
    norm: NormConfig = field(default_factory=NormConfig)
    tied: bool = True

    def __post_init__(self):
        for mixer in self.mixers:
            if isinstance(mixer, AttentionConfig) and self.d_model % mixer.heads:
                raise ValueError(f"heads={mixer.heads}: must divide d_model={self.d_model}")


def tiny() -> ModelConfig:
    return ModelConfig(d_model=8, mixers=(AttentionConfig(heads=2), AttentionConfig(heads=4, window=3)))


def sized(width: int) -> ModelConfig:
    return ModelConfig(d_model=width)
