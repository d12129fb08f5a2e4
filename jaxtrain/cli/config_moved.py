"""Names of classes and of keys in config.gin files of earlier versions that have changed since."""

from pathlib import Path
from types import ModuleType

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

RENAMED_KEYS = {"pipelined.Pipelined.keep": "residuals"}
_GONE = {  # keys that are no more, and what to do instead
    "full_remat.FullRemat": {"vocab_tile": "take the line out, the loss has tiles of its own"},
    "block.BlockConfig": {
        "pre_norm": "take True out; for False set join = @OutputNorm()",
        "post_norm": "take False out; for True set join = @SandwichNorm(), or @OutputNorm() where pre_norm is False",
        "parallel": "take False out; for True set join = @Parallel()",
        "shared_norm": "take False out; for True set join = @ParallelSharedNorm()",
        "residual_scale": "take 1.0 out; for another number set join = @ScaledPreNorm() and its scale",
    },
    "decoder.DecoderConfig": {
        "tied_embeddings": "take False out; for True set head = @TiedHead()",
        "logit_scale": "take 1.0 out; for another number set head = @ScaledHead() and its scale",
        "logit_softcap": "take None out; for a number set head = @CappedHead() and its cap",
        "learned_positions": "take False out; for True set embedding = @LearnedPositions()",
        "scale_embeddings": "take False out; for True set embedding = @ScaledEmbedding()",
        "embedding_scale": "take 1.0 out; for another number set embedding = @ScaledEmbedding() and its scale",
    },
}
MOVED_KEYS = {f"{cls}.{key}": remedy for cls, keys in _GONE.items() for key, remedy in keys.items()}


def module(imports: Imports, name: str, *, beside: Path) -> ModuleType:
    """Import a module. Return an empty one for a module that no longer exists and whose classes have moved."""
    try:
        return imports.module(name, beside=beside)
    except NoModuleError:
        if name not in _PLACES:
            raise
        return ModuleType(name)
