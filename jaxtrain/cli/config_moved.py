"""Names of classes and of keys in config.gin files of earlier versions that have changed since."""

from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from jaxtrain.cli.config_imports import Imports, NoModuleError

_PLACES = {  # old module: (new module, class names, as old=new where a class was renamed)
    "jaxtrain.data.mixture": [("jaxtrain.data.sources.mixture", "Mixture Weighted")],
    "jaxtrain.nn.attention": [("jaxtrain.nn.mixers.attention", "AttentionConfig")],
    "jaxtrain.nn.decay": [("jaxtrain.nn.mixers.decay", "NoDecay FixedDecay StepDecay ChannelDecay")],
    "jaxtrain.nn.delta_rule": [("jaxtrain.nn.mixers.delta_rule", "DeltaRuleConfig")],
    "jaxtrain.nn.linear_attention": [("jaxtrain.nn.mixers.linear_attention", "LinearAttentionConfig")],
    "jaxtrain.nn.mlp": [
        ("jaxtrain.nn.feed_forward.mlp", "MLPConfig"),
        ("jaxtrain.nn.feed_forward.gated_mlp", "GatedMLPConfig"),
    ],
    "jaxtrain.nn.norm": [
        ("jaxtrain.nn.norms.layer_norm", "LayerNormConfig"),
        ("jaxtrain.nn.norms.rms_norm", "RMSNormConfig OffsetRMSNormConfig"),
    ],
    "jaxtrain.nn.rope": [("jaxtrain.nn.positions.rotary", "RopeConfig=Rotary")],
    "jaxtrain.nn.rope.rope": [("jaxtrain.nn.positions.rotary", "RopeConfig=Rotary")],
    "jaxtrain.optim.adamw_8bit": [
        ("jaxtrain.optim.moments.dynamic", "DynamicMoments"),
        ("jaxtrain.optim.moments.float8", "Float8Moments"),
    ],
    "jaxtrain.optim.optimizers": [
        ("jaxtrain.optim.adafactor", "Adafactor"),
        ("jaxtrain.optim.adamw", "AdamW"),
        ("jaxtrain.optim.lion", "Lion"),
        ("jaxtrain.optim.muon", "Muon"),
        ("jaxtrain.optim.schedule_free", "ScheduleFree"),
    ],
    "jaxtrain.pipeline.keep": [("jaxtrain.pipeline.residuals", "ChunkInput LayerValues=RepeatResiduals")],
    "jaxtrain.pipeline.keep.chunk_input": [("jaxtrain.pipeline.residuals.chunk_input", "ChunkInput")],
    "jaxtrain.pipeline.keep.layer_values": [
        ("jaxtrain.pipeline.residuals.repeat_residuals", "LayerValues=RepeatResiduals")
    ],
    "jaxtrain.train.metrics": [("jaxtrain.train.writers", "TensorBoard WeightsAndBiases")],
    "jaxtrain.train.pipelined": [("jaxtrain.train.gradients.pipelined", "Pipelined")],
}

MOVED = {  # old full name of a class: its module and name now
    f"{before}.{name.partition('=')[0]}": (now, name.rpartition("=")[2])
    for before, places in _PLACES.items()
    for now, names in places
    for name in names.split()
}


class Removed(NamedTuple):
    """A key that is no more. A file that has the neutral value means what it would mean without it."""

    neutral: object
    remedy: str


RENAMED_KEYS = {"attention.AttentionConfig.rope": "positions", "pipelined.Pipelined.keep": "residuals"}
CHANGED_VALUES = {  # keys that took other values, and what to write now
    "attention.AttentionConfig.positions": "in place of None, write @NoPositions()",
    "attention.AttentionConfig.qk_norm": (
        "in place of a norm, write @PerHead(norm=...), or @AllHeads(norm=...) where joint_qk_norm was True"
    ),
}
_REMOVED = {  # they stood in the config.gin of every run
    "attention.AttentionConfig": {
        "alibi": Removed(False, "set positions to @ALiBi()"),
        "bias": Removed(False, "name the linears that have one in biases, ('query', 'key', 'value', 'output')"),
        "causal": Removed(True, "set mask to @Bidirectional(), or @BidirectionalWindow(window=...)"),
        "joint_qk_norm": Removed(False, "set qk_norm to @AllHeads(norm=...)"),
        "output_bias": Removed(None, "name the linears that have one in biases, 'output' among them or not"),
        "scale": Removed(None, "set scores to @Scores(scale=...)"),
        "sinks": Removed(False, "set scores to @Scores(sinks=True)"),
        "softcap": Removed(None, "set scores to @Scores(softcap=...)"),
        "window": Removed(None, "set mask to @SlidingWindow(window=...)"),
    },
    "block.BlockConfig": {
        "pre_norm": Removed(True, "set join to @OutputNorm()"),
        "post_norm": Removed(False, "set join to @SandwichNorm(), or to @OutputNorm() where pre_norm is False"),
        "parallel": Removed(False, "set join to @Parallel()"),
        "shared_norm": Removed(False, "set join to @ParallelSharedNorm()"),
        "residual_scale": Removed(1.0, "set join to @ScaledPreNorm(scale=...)"),
    },
    "decoder.DecoderConfig": {
        "tied_embeddings": Removed(False, "set head to @TiedHead()"),
        "logit_scale": Removed(1.0, "set head to @ScaledHead(scale=...)"),
        "logit_softcap": Removed(None, "set head to @CappedHead(cap=...)"),
        "learned_positions": Removed(False, "set embedding to @LearnedPositions()"),
        "scale_embeddings": Removed(False, "set embedding to @ScaledEmbedding()"),
        "embedding_scale": Removed(1.0, "set embedding to @ScaledEmbedding(scale=...)"),
    },
    "full_remat.FullRemat": {"vocab_tile": Removed(None, "take the line out, the loss has tiles of its own")},
    "mixture.MixtureConfig": {
        "balance": Removed(0.0, "put @RowLoss(coefficient=...) into balances"),
        "bias_rate": Removed(0.0, "put @RouterBias(rate=...) into balances"),
    },
    "rotary.Rotary": {
        "fraction": Removed(1.0, "set positions to @PartialRotary(fraction=...)"),
        "interleaved": Removed(False, "set positions to @InterleavedRotary()"),
    },
}
REMOVED_KEYS = {f"{cls}.{key}": removed for cls, keys in _REMOVED.items() for key, removed in keys.items()}


def module(imports: Imports, name: str, *, beside: Path) -> ModuleType:
    """Import a module. Return an empty one for a module that no longer exists and whose classes have moved."""
    try:
        return imports.module(name, beside=beside)
    except NoModuleError:
        if name not in _PLACES:
            raise
        return ModuleType(name)
