"""Llama and the families like it: Mistral, Qwen 3 and Gemma 2.

They share the names of tensors and of most settings. They differ in data: their defaults, their norms, and which layers
have a window. Attention dropout is left out, as in the layer itself: it changes training only.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.norms.rms_norm import OffsetRMSNormConfig, RMSNormConfig
from jaxtrain.surgery.huggingface.family import (
    Family,
    attention_of,
    epsilon_of,
    mlp_of,
    shortest_pattern,
    write_activation,
    write_rope,
)
from jaxtrain.surgery.huggingface.layout import Tensor, as_is, in_layers, torch_linear
from jaxtrain.surgery.huggingface.settings import Settings

Windows = tuple[int | None, ...]  # one for each layer

DEFAULTS = {  # of all families here; a family may have others
    "num_key_value_heads": None,
    "head_dim": None,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "layer_types": None,
    "query_pre_attn_scalar": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaShaped(Family):
    """A family like Llama. `read_windows` and `write_windows` convert the windows of the layers in config.json."""

    model_type: str
    architecture: str
    defaults: Mapping[str, Any]
    read_windows: Callable[[Settings], Windows]
    write_windows: Callable[[Windows], dict[str, Any]]
    activation_key: str = "hidden_act"
    biases: bool = True  # whether attention may have biases, by attention_bias
    qk_norm: bool = False
    gemma: bool = False  # norms on both sides with scales around 0, scaled embeddings, soft caps, scale of queries
    prefix: str = "model."
    ignored: str = r".*\.rotary_emb\.inv_freq"
    layers: str = "num_hidden_layers"
    table: str = "model.embed_tokens.weight"

    def decoder(self, s: Settings) -> DecoderConfig:
        if not self.biases:
            s.require(f"attention of {self.architecture} has no biases", attention_bias=False)
        norm_type = OffsetRMSNormConfig if self.gemma else RMSNormConfig
        norm = norm_type(epsilon=float(s["rms_norm_eps"]))
        pattern, repeats = shortest_pattern(tuple(self._block(s, norm, window) for window in self.read_windows(s)))
        return DecoderConfig(
            vocab_size=s["vocab_size"],
            d_model=s["hidden_size"],
            repeats=repeats,
            pattern=pattern,
            max_length=s["max_position_embeddings"],
            norm=norm,
            tied_embeddings=s["tie_word_embeddings"],
            scale_embeddings=self.gemma,
            logit_softcap=s["final_logit_softcapping"] if self.gemma else None,
        )

    def _block(self, s: Settings, norm: RMSNormConfig | OffsetRMSNormConfig, window: int | None) -> BlockConfig:
        heads = s["num_attention_heads"]
        head_dim = s.or_else("head_dim", s["hidden_size"] // max(heads, 1))
        scalar = s["query_pre_attn_scalar"] if self.gemma else head_dim
        if scalar <= 0:
            raise ValueError(f"query_pre_attn_scalar={scalar!r} must be above 0")
        attention = AttentionConfig(
            heads=heads,
            kv_heads=s.or_else("num_key_value_heads", heads),
            head_dim=head_dim,
            rope=s.rope(),
            qk_norm=norm if self.qk_norm else None,
            bias=s["attention_bias"],
            window=window,
            softcap=s["attn_logit_softcapping"] if self.gemma else None,
            scale=None if scalar == head_dim else scalar**-0.5,
        )
        mlp = GatedMLPConfig(hidden=s["intermediate_size"], activation=s.activation(self.activation_key))
        return BlockConfig(mixer=attention, mlp=mlp, post_norm=self.gemma)

    def write(self, config: DecoderConfig) -> dict[str, Any]:
        mixer, mlp = attention_of(config.pattern[0]), mlp_of(config.pattern[0])
        windows = tuple(attention_of(block).window for block in config.pattern * config.repeats)
        gemma = {
            "query_pre_attn_scalar": mixer.head_dim if mixer.scale is None else round(mixer.scale**-2),
            "attn_logit_softcapping": mixer.softcap,
            "final_logit_softcapping": config.logit_softcap,
        }
        return {
            "vocab_size": config.vocab_size,
            "hidden_size": config.d_model,
            "intermediate_size": mlp.hidden,
            "num_hidden_layers": config.layers,
            "num_attention_heads": mixer.heads,
            "num_key_value_heads": mixer.kv_heads,
            "head_dim": mixer.head_dim,
            "max_position_embeddings": config.max_length,
            "rms_norm_eps": epsilon_of(config.norm),
            "tie_word_embeddings": config.tied_embeddings,
            **({"attention_bias": mixer.bias} if self.biases else {}),
            self.activation_key: write_activation(mlp.activation, tanh="gelu_pytorch_tanh"),
            **write_rope(mixer.rope),
            **self.write_windows(windows),
            **(gemma if self.gemma else {}),
        }

    def tensors(self, config: DecoderConfig) -> Iterator[Tensor]:
        table = (config.vocab_size, config.d_model)
        yield as_is("model.embed_tokens.weight", table, "embedding", "table")
        yield from in_layers(config, "model.layers.", self._block_tensors)
        yield as_is("model.norm.weight", (config.d_model,), "final_norm", "scale")
        if not config.tied_embeddings:
            yield as_is("lm_head.weight", table, "output", "kernel")

    def _block_tensors(self, config: DecoderConfig, block: BlockConfig) -> list[Tensor]:
        D, F, mixer = (config.d_model,), (mlp_of(block).hidden,), attention_of(block)
        H, J = (mixer.heads, mixer.head_dim), (mixer.kv_heads, mixer.head_dim)
        tensors = [
            *torch_linear("self_attn.q_proj", D, H, "mixer", "query", bias=mixer.bias),
            *torch_linear("self_attn.k_proj", D, J, "mixer", "key", bias=mixer.bias),
            *torch_linear("self_attn.v_proj", D, J, "mixer", "value", bias=mixer.bias),
            *torch_linear("self_attn.o_proj", H, D, "mixer", "output", bias=mixer.bias),
            *torch_linear("mlp.gate_proj", D, F, "mlp", "gate"),
            *torch_linear("mlp.up_proj", D, F, "mlp", "up"),
            *torch_linear("mlp.down_proj", F, D, "mlp", "down"),
        ]
        norms = {"input_layernorm": "mixer_norm", "post_attention_layernorm": "mlp_norm"}
        if self.gemma:
            norms = {
                "input_layernorm": "mixer_norm",
                "post_attention_layernorm": "mixer_post_norm",
                "pre_feedforward_layernorm": "mlp_norm",
                "post_feedforward_layernorm": "mlp_post_norm",
            }
        tensors += [as_is(f"{theirs}.weight", D, ours, "scale") for theirs, ours in norms.items()]
        if mixer.qk_norm:
            K = (mixer.head_dim,)
            tensors.append(as_is("self_attn.q_norm.weight", K, "mixer", "query_norm", "scale"))
            tensors.append(as_is("self_attn.k_norm.weight", K, "mixer", "key_norm", "scale"))
        return tensors


def _no_windows(s: Settings) -> Windows:
    return _same_windows(s, None)


def _mistral_windows(s: Settings) -> Windows:
    return _same_windows(s, s["sliding_window"])


def _same_windows(s: Settings, window: int | None) -> Windows:
    """Return the same window for all layers. Raises ValueError if `layer_types` has something else."""
    kind = "sliding_attention" if window else "full_attention"
    if any(other != kind for other in s["layer_types"] or ()):
        raise ValueError(f"layer_types: this model_type has {kind} in all of its layers; make all of them so")
    return (window,) * s["num_hidden_layers"]


def _gemma2_windows(s: Settings) -> Windows:
    s.require_same("hidden_act", "hidden_activation")
    s.require_same("sliding_window_size", "sliding_window")
    return _listed_windows(s, [i % 2 == 0 for i in range(s["num_hidden_layers"])])


def _qwen3_windows(s: Settings) -> Windows:
    used, first = s["use_sliding_window"], s["max_window_layers"]
    windows = _listed_windows(s, [used and i >= first for i in range(s["num_hidden_layers"])])
    if any(windows) and not used:
        raise ValueError("layer_types has sliding_attention, at odds with use_sliding_window=False: change one of them")
    return windows


def _listed_windows(s: Settings, default: list[bool]) -> Windows:
    """Return the windows by `layer_types`, or without it by the family's rule `default`."""
    types = s["layer_types"] or ["sliding_attention" if slides else "full_attention" for slides in default]
    if len(types) != len(default) or not all(kind in ("sliding_attention", "full_attention") for kind in types):
        raise ValueError(
            f"layer_types={types!r} must give sliding_attention or full_attention for each of the {len(default)} layers"
        )
    window = s["sliding_window"]
    if window is None and "sliding_attention" in types:
        raise ValueError("sliding_window=None is at odds with layers of sliding_attention: say how long it is")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _write_layer_types(windows: Windows) -> dict[str, Any]:
    return {
        "sliding_window": next(filter(None, windows), None),
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
    }


def _write_qwen3_windows(windows: Windows) -> dict[str, Any]:
    first = next((i for i, window in enumerate(windows) if window), len(windows))
    return {**_write_layer_types(windows), "use_sliding_window": any(windows), "max_window_layers": first}


LLAMA = LlamaShaped(
    model_type="llama",
    architecture="LlamaForCausalLM",
    defaults=DEFAULTS | {"max_position_embeddings": 2048},
    read_windows=_no_windows,
    write_windows=lambda windows: {},
)
MISTRAL = LlamaShaped(
    model_type="mistral",
    architecture="MistralForCausalLM",
    defaults=DEFAULTS | {"sliding_window": 4096, "num_key_value_heads": 8, "max_position_embeddings": 131_072},
    read_windows=_mistral_windows,
    write_windows=lambda windows: {"sliding_window": windows[0]},
    biases=False,
)
QWEN3 = LlamaShaped(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    defaults=DEFAULTS
    | {
        "head_dim": 128,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32_768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    read_windows=_qwen3_windows,
    write_windows=_write_qwen3_windows,
    qk_norm=True,
)
GEMMA2 = LlamaShaped(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    defaults=DEFAULTS
    | {
        "head_dim": 256,
        "num_key_value_heads": 4,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    read_windows=_gemma2_windows,
    write_windows=_write_layer_types,
    activation_key="hidden_activation",
    gemma=True,
)
