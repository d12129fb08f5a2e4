"""BERT: an encoder with post-norm, learned positions and a masked language model's head. arXiv:1810.04805.

Texts have one part, so of the two token types only the first is read: its vector is added to the positions. The pooler
and the head for the next sentence are left out.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.embeddings import LearnedPositions
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.heads import TransformedHead
from jaxtrain.nn.joins import PostNorm
from jaxtrain.nn.masks import Bidirectional
from jaxtrain.nn.mixers.attention import LINEARS, AttentionConfig
from jaxtrain.nn.norms.layer_norm import LayerNormConfig
from jaxtrain.nn.positions import NoPositions
from jaxtrain.surgery.huggingface.layout import Axes, Part, Tensor, as_is, torch_linear
from jaxtrain.surgery.huggingface.llama_like import DEFAULTS, LlamaLike, norm_tensors
from jaxtrain.surgery.huggingface.settings import Settings

TYPES = 2  # of tokens


class BERT(LlamaLike):
    """BERT. The dropout of the residual stream is kept; our attention has no dropout of its weights."""

    model_type = "bert"
    architecture = "BertForMaskedLM"
    epsilon = "layer_norm_eps"
    biases = (None, None)  # not a setting
    derived = ("head_dim", "num_key_value_heads")
    defaults = DEFAULTS | {
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    prefix = "bert."
    ignored = r"bert\.pooler\..*|cls\.seq_relationship\..*|.*\.position_ids"
    renamed = {r"\.gamma$": ".weight", r"\.beta$": ".bias"}  # of norms, as TensorFlow named them
    copies = {"cls.predictions.decoder.bias": "cls.predictions.bias"}
    table = "bert.embeddings.word_embeddings.weight"
    stack = "bert.encoder.layer."
    norms = {"mixer_post_norm": "attention.output.LayerNorm", "mlp_post_norm": "output.LayerNorm"}
    last_norm = None
    head = "cls.predictions.decoder.weight"

    def norm(self, epsilon: float) -> LayerNormConfig:
        return LayerNormConfig(epsilon=epsilon)

    def positions(self, s: Settings, layer: int, window: int | None) -> NoPositions:
        return NoPositions()

    def write_rope(self, attentions: Sequence[AttentionConfig]) -> dict[str, Any]:
        return {}

    def attention(self, s: Settings, common: AttentionConfig) -> AttentionConfig:
        return replace(common, mask=Bidirectional(), biases=LINEARS)

    def mlp(self, s: Settings, hidden: int, activation: str, bias: bool) -> MLPConfig:
        return MLPConfig(hidden=hidden, activation=activation, bias=True)

    def block(self, s: Settings, common: BlockConfig) -> BlockConfig:
        return replace(common, join=PostNorm())

    def whole(self, s: Settings, common: DecoderConfig) -> DecoderConfig:
        s.pass_over("attention_probs_dropout_prob", "classifier_dropout")  # training only; of another head
        s.pass_over("directionality", *(key for key in s.given_keys if key.startswith("pooler_")))
        s.require("there are two types of tokens, of which the first is read", type_vocab_size=TYPES)
        other = "models of another kind have it"
        s.require(other, position_embedding_type="absolute", is_decoder=False, tie_word_embeddings=True)
        return replace(
            common,
            embedding=LearnedPositions(normalised=True),
            head=TransformedHead(activation=s.activation("hidden_act")),
            dropout=float(s["hidden_dropout_prob"]),
        )

    def write_more(self, config: DecoderConfig) -> dict[str, Any]:
        return {
            "hidden_dropout_prob": config.dropout,
            "attention_probs_dropout_prob": 0.0,
            "type_vocab_size": TYPES,
        }

    def embedding_tensors(self, config: DecoderConfig) -> list[Tensor]:
        positions = (config.max_length, config.d_model)
        first_type = Part(("positions", "table"), lambda w: np.broadcast_to(w[:1], positions), added=True)
        return [
            as_is("bert.embeddings.position_embeddings.weight", positions, "positions", "table"),
            Tensor("bert.embeddings.token_type_embeddings.weight", (TYPES, config.d_model), (first_type,)),
            *norm_tensors("bert.embeddings.LayerNorm", config.norm, config.d_model, "embedding_norm"),
        ]

    def attention_tensors(self, mixer: AttentionConfig, D: Axes, H: Axes, J: Axes) -> list[Tensor]:
        return [
            *torch_linear("attention.self.query", D, H, "mixer", "query", bias=True),
            *torch_linear("attention.self.key", D, J, "mixer", "key", bias=True),
            *torch_linear("attention.self.value", D, J, "mixer", "value", bias=True),
            *torch_linear("attention.output.dense", H, D, "mixer", "output", bias=True),
        ]

    def mlp_tensors(self, bias: bool, D: Axes, F: Axes) -> list[Tensor]:
        return [
            *torch_linear("intermediate.dense", D, F, "mlp", "up", bias=True),
            *torch_linear("output.dense", F, D, "mlp", "down", bias=True),
        ]

    def head_tensors(self, config: DecoderConfig) -> list[Tensor]:
        if not config.head.tied:
            raise ValueError(f"{self.head} has other values than {self.table}: the head of a BERT is tied to it")
        D = (config.d_model,)
        return [
            *torch_linear("cls.predictions.transform.dense", D, D, "transform", "dense", bias=True),
            *norm_tensors("cls.predictions.transform.LayerNorm", config.norm, config.d_model, "transform", "norm"),
            as_is("cls.predictions.bias", (config.vocab_size,), "logit_bias"),
        ]
