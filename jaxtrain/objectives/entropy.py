"""Test-time adaptation by the entropy of predictions. Wang et al. (2021), Tent, arXiv:2006.10726.

It needs no targets: those of the text are reported, and not trained on. Train few parameters with it, such as the
routers of a weight-ensembling mixture (arXiv:2402.00433) or norms: a whole model would learn to be sure of one word.
The logits of a microbatch are whole in memory.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.layer import Keys
from jaxtrain.nn.trainable import Everything
from jaxtrain.objectives.base import Model, Objective, Sums, Terms
from jaxtrain.shapes import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Entropy(Objective):
    """The mean over loss tokens of the entropy of the predicted distribution, float32, in nats."""

    reads_teacher: ClassVar[bool] = False
    paper: ClassVar[str] = "arXiv:2006.10726"

    def weights(self, batch: Batch) -> Sums:
        return dict.fromkeys(("entropy", "nll"), jnp.sum(batch.weights))

    def check(self, model: DecoderConfig) -> None:
        if model.trainable == Everything():
            raise ValueError(
                "objective=Entropy(): of all parameters it makes a model that is sure of one word; set model.trainable "
                "to a few, such as @OnlyNorms() or @Only(names=('*.router*',))"
            )

    def __call__(self, model: Model, batch: Batch, keys: Keys | None) -> Terms:
        log_p_BLW = jax.nn.log_softmax(model.head.logits(model.hidden(batch, keys).y), axis=-1)
        entropy_BL = -jnp.sum(jnp.exp(log_p_BLW) * log_p_BLW, axis=-1)
        # A sum over the vocabulary, not a gather from it: every device reads only its own part of a split vocabulary.
        is_target_BLW = batch.targets[..., None] == jnp.arange(log_p_BLW.shape[-1])[None, None]
        nll_BL = -jnp.sum(jnp.where(is_target_BLW, log_p_BLW, 0.0), axis=-1)
        entropy, nll = (jnp.sum(of_token * batch.weights) for of_token in (entropy_BL, nll_BL))
        return Terms({"entropy": entropy}, {"nll": nll})

    def evaluation(self, model: Model, batch: Batch) -> Terms:
        nll_BL, _ = model.head.cross_entropy(model.hidden(batch).y, batch.targets)
        return Terms({}, {"nll": jnp.sum(nll_BL * batch.weights)})
