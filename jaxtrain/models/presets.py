"""Published decoders as configurations, and each family at a tiny size for tests and first runs.

Sizes are those of the released checkpoints: Llama 2 (arXiv:2307.09288), Llama 3 and 3.1 (arXiv:2407.21783), Mistral 7B
(arXiv:2310.06825), Qwen 3 (arXiv:2505.09388), Gemma 2 (arXiv:2408.00118), GPT-2 (Radford et al., 2019).
"""

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.embeddings import LearnedPositions, ScaledEmbedding
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.heads import CappedHead, LinearHead, TiedHead
from jaxtrain.nn.joins import SandwichNorm
from jaxtrain.nn.masks import Causal, Mask, SlidingWindow
from jaxtrain.nn.mixers.attention import LINEARS, AttentionConfig
from jaxtrain.nn.mixers.scores import Scores
from jaxtrain.nn.norms.layer_norm import LayerNormConfig
from jaxtrain.nn.norms.rms_norm import OffsetRMSNormConfig, RMSNormConfig
from jaxtrain.nn.positions import NoPositions, Rotary
from jaxtrain.nn.qk_norms import PerHead
from jaxtrain.nn.rope import Llama3Scaling, RopeScaling


def llama(
    *,
    vocab_size: int,
    d_model: int,
    layers: int,
    heads: int,
    kv_heads: int,
    hidden: int,
    max_length: int,
    theta: float = 10_000.0,
    scaling: RopeScaling | None = None,
    window: int | None = None,
) -> DecoderConfig:
    """Return a Llama decoder at any size: gated SiLU, RMSNorm, rotary embeddings, untied head."""
    attention = AttentionConfig(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=d_model // heads,
        positions=Rotary(theta=theta, scaling=scaling),
        mask=SlidingWindow(window=window) if window else Causal(),
    )
    return DecoderConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        repeats=layers,
        pattern=(BlockConfig(mixer=attention, mlp=GatedMLPConfig(hidden=hidden)),),
        max_length=max_length,
        norm=RMSNormConfig(epsilon=1e-5),
    )


def llama2_7b() -> DecoderConfig:
    return llama(vocab_size=32_000, d_model=4096, layers=32, heads=32, kv_heads=32, hidden=11_008, max_length=4096)


def llama3_8b() -> DecoderConfig:
    return llama(
        vocab_size=128_256,
        d_model=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        hidden=14_336,
        max_length=8192,
        theta=500_000.0,
    )


def llama31_8b() -> DecoderConfig:
    return llama(
        vocab_size=128_256,
        d_model=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        hidden=14_336,
        max_length=131_072,
        theta=500_000.0,
        scaling=Llama3Scaling(),
    )


def llama31_70b() -> DecoderConfig:
    return llama(
        vocab_size=128_256,
        d_model=8192,
        layers=80,
        heads=64,
        kv_heads=8,
        hidden=28_672,
        max_length=131_072,
        theta=500_000.0,
        scaling=Llama3Scaling(),
    )


def llama3_tiny() -> DecoderConfig:
    return llama(
        vocab_size=320,
        d_model=64,
        layers=2,
        heads=4,
        kv_heads=2,
        hidden=160,
        max_length=256,
        theta=500_000.0,
        scaling=Llama3Scaling(original_length=64),
    )


def mistral_7b() -> DecoderConfig:
    return llama(
        vocab_size=32_000,
        d_model=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        hidden=14_336,
        max_length=32_768,
        window=4096,
    )


def mistral_tiny() -> DecoderConfig:
    return llama(vocab_size=320, d_model=64, layers=2, heads=4, kv_heads=2, hidden=160, max_length=256, window=32)


def qwen3(
    *,
    d_model: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    hidden: int,
    tied: bool,
    vocab_size: int = 151_936,
) -> DecoderConfig:
    """Return a Qwen 3 decoder at any size: Llama with normalised queries and keys, and any head dim."""
    attention = AttentionConfig(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        positions=Rotary(theta=1_000_000.0),
        qk_norm=PerHead(norm=RMSNormConfig(epsilon=1e-6)),
    )
    return DecoderConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        repeats=layers,
        pattern=(BlockConfig(mixer=attention, mlp=GatedMLPConfig(hidden=hidden)),),
        max_length=40_960,
        norm=RMSNormConfig(epsilon=1e-6),
        head=TiedHead() if tied else LinearHead(),
    )


def qwen3_600m() -> DecoderConfig:
    return qwen3(d_model=1024, layers=28, heads=16, kv_heads=8, head_dim=128, hidden=3072, tied=True)


def qwen3_8b() -> DecoderConfig:
    return qwen3(d_model=4096, layers=36, heads=32, kv_heads=8, head_dim=128, hidden=12_288, tied=False)


def qwen3_tiny() -> DecoderConfig:
    return qwen3(d_model=64, layers=2, heads=4, kv_heads=2, head_dim=32, hidden=160, tied=True, vocab_size=320)


def gemma2(
    *,
    d_model: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    hidden: int,
    vocab_size: int = 256_000,
    window: int = 4096,
    max_length: int = 8192,
) -> DecoderConfig:
    """Return a Gemma 2 decoder at any size: alternating local and global attention, soft caps, pre- and post-norms."""
    if layers % 2:
        raise ValueError(f"{layers=}: must be even, as layers with a window and without take turns")

    def block(mask: Mask) -> BlockConfig:
        attention = AttentionConfig(
            heads=heads, kv_heads=kv_heads, head_dim=head_dim, mask=mask, scores=Scores(softcap=50.0)
        )
        return BlockConfig(
            mixer=attention, mlp=GatedMLPConfig(hidden=hidden, activation="gelu_tanh"), join=SandwichNorm()
        )

    return DecoderConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        repeats=layers // 2,
        pattern=(block(SlidingWindow(window=window)), block(Causal())),
        max_length=max_length,
        norm=OffsetRMSNormConfig(epsilon=1e-6),
        embedding=ScaledEmbedding(),
        head=CappedHead(cap=30.0),
    )


def gemma2_2b() -> DecoderConfig:
    return gemma2(d_model=2304, layers=26, heads=8, kv_heads=4, head_dim=256, hidden=9216)


def gemma2_9b() -> DecoderConfig:
    return gemma2(d_model=3584, layers=42, heads=16, kv_heads=8, head_dim=256, hidden=14_336)


def gemma2_tiny() -> DecoderConfig:
    return gemma2(
        d_model=64,
        layers=4,
        heads=4,
        kv_heads=2,
        head_dim=32,
        hidden=160,
        vocab_size=320,
        window=32,
        max_length=256,
    )


def gpt2(*, d_model: int, layers: int, heads: int, vocab_size: int = 50_257, max_length: int = 1024) -> DecoderConfig:
    """Return a GPT-2 decoder at any size: LayerNorm, biases, learned positions, tied head."""
    attention = AttentionConfig(
        heads=heads, kv_heads=heads, head_dim=d_model // heads, positions=NoPositions(), biases=LINEARS
    )
    return DecoderConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        repeats=layers,
        pattern=(BlockConfig(mixer=attention, mlp=MLPConfig(hidden=4 * d_model, bias=True)),),
        max_length=max_length,
        norm=LayerNormConfig(),
        embedding=LearnedPositions(),
        head=TiedHead(),
    )


def gpt2_small() -> DecoderConfig:
    return gpt2(d_model=768, layers=12, heads=12)


def gpt2_tiny() -> DecoderConfig:
    return gpt2(d_model=64, layers=2, heads=4, vocab_size=320, max_length=256)
