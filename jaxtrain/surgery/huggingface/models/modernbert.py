"""ModernBERT: an encoder with rotary embeddings of two bases and windows in two layers of three. arXiv:2412.13663."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.models.stacks import shortest
from jaxtrain.nn.embeddings import NormalisedEmbedding
from jaxtrain.nn.heads import TransformedHead
from jaxtrain.nn.joins import FeedForwardNorm
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.masks import Bidirectional, BidirectionalWindow
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.norms.layer_norm import LayerNormConfig
from jaxtrain.nn.positions import Positions
from jaxtrain.surgery.huggingface.layout import Axes, Tensor, as_is, torch_linear, torch_linears
from jaxtrain.surgery.huggingface.llama_like import DEFAULTS, LlamaLike, norm_tensors, write_two_ropes
from jaxtrain.surgery.huggingface.rope import RopeKeys, read_rope
from jaxtrain.surgery.huggingface.settings import Settings
from jaxtrain.surgery.huggingface.windows import FULL, SLIDING, Windows, listed_windows, write_layer_types

GLOBAL = RopeKeys("global_rope_theta", 160_000.0, layer_type=FULL, scaled=False, types=("default",))
LOCAL = RopeKeys("local_rope_theta", 10_000.0, layer_type=SLIDING, scaled=False, types=("default",))


class ModernBERT(LlamaLike):
    """ModernBERT. A window of 128 is 64 keys to each side, so with the query's own ours is 65, counted both ways."""

    model_type = "modernbert"
    architecture = "ModernBertForMaskedLM"
    epsilon = "norm_eps"
    activation = "hidden_activation"
    biases = (None, None)
    derived = ("head_dim", "num_key_value_heads")
    defaults = DEFAULTS | {
        "classifier_activation": "gelu",
        "classifier_bias": False,
        "decoder_bias": True,
        "global_attn_every_n_layers": 3,
        "hidden_activation": "gelu",
        "local_attention": 128,
        "max_position_embeddings": 8192,
        "norm_bias": False,
        "norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    table = "model.embeddings.tok_embeddings.weight"
    norms = {"mixer_norm": "attn_norm", "mlp_norm": "mlp_norm"}
    last_norm = "model.final_norm"
    head = "decoder.weight"

    def windows(self, s: Settings) -> Windows:
        period = s["global_attn_every_n_layers"]
        if period < 1:
            raise ValueError(f"global_attn_every_n_layers={period} must be at least 1: it counts layers")
        listed = listed_windows(s, [i % period != 0 for i in range(s["num_hidden_layers"])], "local_attention")
        return tuple(window and window // 2 + 1 for window in listed)

    def write_windows(self, windows: Windows) -> dict[str, Any]:
        window = next(filter(None, windows), 1)
        return {"layer_types": write_layer_types(windows)["layer_types"], "local_attention": 2 * (window - 1)}

    def positions(self, s: Settings, layer: int, window: int | None) -> Positions:
        of_full, of_sliding = read_rope(s, GLOBAL), read_rope(s, LOCAL)
        return of_sliding if window else of_full

    def write_rope(self, attentions: Sequence[AttentionConfig]) -> dict[str, Any]:
        return write_two_ropes(attentions, GLOBAL, LOCAL)

    def attention(self, s: Settings, common: AttentionConfig) -> AttentionConfig:
        window = common.mask.span.window
        return replace(common, mask=BidirectionalWindow(window=window) if window else Bidirectional())

    def whole(self, s: Settings, common: DecoderConfig) -> DecoderConfig:
        s.pass_over("classifier_dropout", "classifier_pooling")  # of other heads
        s.pass_over("initializer_cutoff_factor", "sparse_prediction", "sparse_pred_ignore_index")  # training only
        s.pass_over("deterministic_flash_attn", "reference_compile", "repad_logits_with_grad")  # how it is computed
        s.pass_over("layer_norm_eps", "position_embedding_type")  # which no program reads
        s.require("the rotary embeddings of this model_type have none", rope_scaling=None)
        s.require("dropout is a setting of ours: --set it", embedding_dropout=0.0, mlp_dropout=0.0)
        first, *others = common.blocks
        pattern, repeats = shortest((replace(first, join=FeedForwardNorm()), *others))
        head = TransformedHead(
            activation=s.activation("classifier_activation"),
            bias=s["classifier_bias"],
            logit_bias=s["decoder_bias"],
            linear=None if common.head.tied else Dense(),
        )
        norm = LayerNormConfig(epsilon=float(s[self.epsilon]), bias=s["norm_bias"])
        embedding = NormalisedEmbedding()
        return replace(common, pattern=pattern, repeats=repeats, norm=norm, embedding=embedding, head=head)

    def write_more(self, config: DecoderConfig) -> dict[str, Any]:
        head = config.head if isinstance(config.head, TransformedHead) else TransformedHead()
        return {
            "classifier_activation": head.activation,
            "classifier_bias": head.bias,
            "decoder_bias": head.logit_bias,
            "norm_bias": isinstance(config.norm, LayerNormConfig) and config.norm.bias,
        }

    def embedding_tensors(self, config: DecoderConfig) -> list[Tensor]:
        return norm_tensors("model.embeddings.norm", config.norm, config.d_model, "embedding_norm")

    def attention_tensors(self, mixer: AttentionConfig, D: Axes, H: Axes, J: Axes) -> list[Tensor]:
        query, key, value = (("mixer", name) for name in ("query", "key", "value"))
        return [
            torch_linears("attn.Wqkv", D, (H, query), (J, key), (J, value)),
            *torch_linear("attn.Wo", H, D, "mixer", "output"),
        ]

    def mlp_tensors(self, bias: bool, D: Axes, F: Axes) -> list[Tensor]:
        return [
            torch_linears("mlp.Wi", D, (F, ("mlp", "gate")), (F, ("mlp", "up"))),
            *torch_linear("mlp.Wo", F, D, "mlp", "down"),
        ]

    def head_tensors(self, config: DecoderConfig) -> list[Tensor]:
        head, D = config.head, (config.d_model,)
        assert isinstance(head, TransformedHead)
        return [
            *torch_linear("head.dense", D, D, "transform", "dense", bias=head.bias),
            *norm_tensors("head.norm", config.norm, config.d_model, "transform", "norm"),
            *([as_is("decoder.bias", (config.vocab_size,), "logit_bias")] if head.logit_bias else []),
        ]
