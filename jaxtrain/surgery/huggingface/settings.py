"""The settings of a config.json, and checks that each is of its type, is understood, and contradicts no other."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from jaxtrain.surgery.huggingface.harmless import HARMLESS, NEUTRAL

ACTIVATIONS = {  # theirs: ours
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
LARGEST = 2**31 - 1  # largest size: positions and indices are int32
LARGEST_FLOAT = float(np.finfo(np.float32).max)

type Kind = tuple[type, ...]  # the Python types of a kind of setting
SIZE: Kind = (int,)
NUMBER: Kind = (int, float)
FLAG: Kind = (bool,)
TEXT: Kind = (str,)
LIST: Kind = (list,)
NULL: Kind = (type(None),)
SPOKEN = {SIZE: "a whole number", NUMBER: "a number", FLAG: "true or false", TEXT: "a text", LIST: "a list"}
KINDS: dict[str, tuple[Kind, ...]] = {  # of the settings that families read
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"), (SIZE,)),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "max_window_layers"), (SIZE,)),
    **dict.fromkeys(("n_embd", "n_head", "n_layer", "n_positions"), (SIZE,)),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "sliding_window", "n_inner"), (SIZE, NULL)),
    "sliding_window_pattern": (SIZE,),
    **dict.fromkeys(("num_local_experts", "num_experts", "num_experts_per_tok", "moe_intermediate_size"), (SIZE,)),
    **dict.fromkeys(("n_routed_experts", "n_shared_experts", "first_k_dense_replace"), (SIZE,)),
    **dict.fromkeys(("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), (SIZE,)),
    **dict.fromkeys(("q_lora_rank", "n_group", "topk_group"), (SIZE, NULL)),
    **dict.fromkeys(("routed_scaling_factor", "aux_loss_alpha", "swiglu_alpha", "swiglu_limit"), (NUMBER,)),
    "topk_method": (TEXT,),
    **dict.fromkeys(("rope_interleave", "use_qk_norm"), (FLAG,)),
    **dict.fromkeys(("shared_expert_intermediate_size", "decoder_sparse_step"), (SIZE,)),
    "router_aux_loss_coef": (NUMBER,),
    "clip_qkv": (NUMBER, NULL),
    **dict.fromkeys(("norm_topk_prob", "qkv_bias"), (FLAG,)),
    "mlp_only_layers": (LIST, NULL),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon"), (NUMBER,)),
    **dict.fromkeys(("resid_pdrop", "hidden_dropout", "residual_dropout", "query_pre_attn_scalar"), (NUMBER,)),
    **dict.fromkeys(("hidden_dropout_prob", "norm_eps"), (NUMBER,)),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "attention_multiplier"), (NUMBER,)),
    **dict.fromkeys(("logits_scaling", "logit_scale"), (NUMBER,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (NUMBER, NULL)),
    **dict.fromkeys(("attention_bias", "tie_word_embeddings", "use_sliding_window", "scale_attn_weights"), (FLAG,)),
    **dict.fromkeys(("mlp_bias", "use_bias", "use_parallel_residual"), (FLAG,)),
    **dict.fromkeys(("norm_bias", "decoder_bias", "classifier_bias"), (FLAG,)),
    "classifier_activation": (TEXT,),
    **dict.fromkeys(("local_attention", "global_attn_every_n_layers"), (SIZE,)),
    **dict.fromkeys(("hidden_act", "hidden_activation", "activation_function"), (TEXT,)),
    "layer_types": (LIST, NULL),
    "no_rope_layers": (LIST, NULL),
    "no_rope_layer_interval": (SIZE,),
    **dict.fromkeys(("rope_theta", "rotary_emb_base", "rotary_pct"), (NUMBER,)),
    "partial_rotary_factor": (NUMBER, NULL),
    **dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor"), (NUMBER,)),
    **dict.fromkeys(("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"), (NUMBER,)),
    "truncate": (FLAG,),
    **dict.fromkeys(("short_factor", "long_factor"), (LIST,)),
    "original_max_position_embeddings": (SIZE,),
}


class Settings:
    """A config.json, and a family's defaults: transformers leaves out the settings that equal their default."""

    def __init__(self, given: Mapping[str, Any], defaults: Mapping[str, Any]):
        self._given = given
        self._values = {**defaults, **given}
        self._understood: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            raise ValueError(f"config.json has no {key!r}: it must say it")
        self._understood.add(key)
        return checked(key, self._values[key])

    def given(self, key: str) -> Any:
        """Return a setting unchecked, or None where config.json does not have it."""
        self._understood.add(key)
        return self._given.get(key)

    @property
    def given_keys(self) -> Collection[str]:
        return self._given.keys()

    def pass_over(self, *keys: str) -> None:
        """Accept any value of settings that a family has and that do not change what the decoder computes."""
        self._understood.update(keys)

    def or_else(self, key: str, value: int) -> int:
        """Return a setting, or `value` where it is null."""
        return value if self[key] is None else self[key]

    def require(self, reason: str, **neutral: Any) -> None:
        """Raise ValueError for an unsupported setting that has another value than its neutral one."""
        for key, value in neutral.items():
            self._understood.add(key)
            if self._values.get(key, value) not in (value, None):
                raise ValueError(f"{key}={self._values[key]!r} is not supported, only {value!r}: {reason}")

    def require_same(self, key: str, other: str) -> None:
        """Raise ValueError where `key`, a second name of the setting `other`, has another value."""
        self._understood.add(key)
        if self._given.get(key) not in (None, self[other]):
            raise ValueError(f"{key}={self._given[key]!r} is at odds with {other}={self[other]!r}: leave one of them")

    def check_understood(self) -> None:
        """Raise ValueError for a setting that has not been read and is not known to be harmless."""
        for key, value in self._given.items():
            if value is None or key in self._understood or key in HARMLESS:
                continue
            if key not in NEUTRAL:
                raise ValueError(
                    f"{key}={short(value)} is not understood, and may change what the model computes: "
                    f"take it out of config.json if it does not"
                )
            if value != NEUTRAL[key]:
                raise ValueError(f"{key}={short(value)} is not supported, only {NEUTRAL[key]!r}")

    def activation(self, key: str) -> str:
        if self[key] not in ACTIVATIONS:
            raise ValueError(f"{key}={self[key]!r} is not one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[self[key]]


def checked(key: str, value: Any) -> Any:
    """Return a setting. Raises ValueError unless it is exactly of its kind: true is no number, and 96.0 no size."""
    kinds = KINDS[key]
    if not any(type(value) in types for types in kinds):
        spoken = " or ".join(SPOKEN.get(types, "null") for types in kinds)
        raise ValueError(f"{key}={short(value)} must be {spoken}")
    if SIZE in kinds and value is not None and abs(value) > LARGEST:
        raise ValueError(f"{key}={short(value)} must be at most {LARGEST}")
    if NUMBER in kinds and value is not None and not abs(value) <= LARGEST_FLOAT:
        raise ValueError(f"{key}={short(value)} must be a number that a float32 can hold")
    return value


def short(value: Any) -> str:
    """Return a value as text for an error, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
