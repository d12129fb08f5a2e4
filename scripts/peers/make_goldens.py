"""Record what `transformers` computes for a tiny random model of each family that `jaxtrain convert` knows.

    ENVIRONMENT/bin/python scripts/peers/make_goldens.py tests/golden/huggingface [FAMILY ...]

Each family gets a folder as `save_pretrained` writes it (config.json and safetensors, Llama's in two shards with an
index) and golden.npz: tokens, float32 logits and the versions that made them. Sizes are small, and every number that
the family's mathematics has is off its neutral value: norms are not 1, biases not 0, windows shorter than the text,
soft caps low enough to bend, the head dimension unlike d_model / heads, rope wavelengths on both sides of the scaling's
limits. A reader that leaves any of them out misses the logits by far more than rounding.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    Cohere2Config,
    DeepseekV2Config,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4MoeConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    ModernBertConfig,
    Olmo2Config,
    OlmoeConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    Starcoder2Config,
)

BATCH, LENGTH, VOCABULARY, SEED = 2, 24, 96, 20240607
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
SMALLER = COMMON | {
    "vocab_size": 64,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
WITHOUT_GROUPS = {key: value for key, value in SMALLER.items() if key != "num_key_value_heads"}
MASKED = ("bert", "modernbert")  # trained to fill in masked tokens; the others predict the next one
LATENT = SMALLER | {
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 12,
    "v_head_dim": 6,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
}
YARN = {  # pairs that are kept, blended and divided
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 2.0,
    "beta_slow": 0.25,
}
LONG_ROPE = {  # of twelve elements of sixteen, in rows longer than the original ones
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 4.0],
}
LLAMA3_ROPE = {  # a wavelength that is kept, one in the blend and several that are stretched
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def configs() -> dict[str, PreTrainedConfig]:
    """Return the configuration of each family, by folder name."""
    return {
        "llama": LlamaConfig(**COMMON, head_dim=12, rope_parameters=LLAMA3_ROPE, rms_norm_eps=1e-5),
        "qwen3": Qwen3Config(
            **COMMON | {"num_hidden_layers": 3, "num_key_value_heads": 1},
            head_dim=12,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=True,
        ),
        "gemma2": Gemma2Config(
            **COMMON | {"num_hidden_layers": 4, "intermediate_size": 24},
            head_dim=10,
            query_pre_attn_scalar=7,
            sliding_window=5,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
        "mistral": MistralConfig(**COMMON, head_dim=10, sliding_window=6),
        "gpt2": GPT2Config(
            vocab_size=VOCABULARY, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1
        ),
        "qwen2": Qwen2Config(
            **SMALLER,
            use_sliding_window=True,
            sliding_window=5,
            max_window_layers=1,
            rope_parameters=YARN,
        ),
        "gemma": GemmaConfig(**SMALLER, head_dim=12),
        "gemma3_text": Gemma3TextConfig(
            **SMALLER | {"num_hidden_layers": 3, "intermediate_size": 16},
            head_dim=10,
            query_pre_attn_scalar=7,
            sliding_window=5,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        ),
        "phi3": Phi3Config(
            **SMALLER, original_max_position_embeddings=16, rope_parameters=LONG_ROPE, sliding_window=19
        ),
        "olmo2": Olmo2Config(**SMALLER | {"num_attention_heads": 4, "num_key_value_heads": 2}),
        "smollm3": SmolLM3Config(
            **SMALLER,
            no_rope_layers=[1, 0],
            use_sliding_window=True,
            sliding_window=5,
            attention_bias=True,
            mlp_bias=True,
        ),
        "starcoder2": Starcoder2Config(**SMALLER, sliding_window=6),
        "gpt_neox": GPTNeoXConfig(
            **WITHOUT_GROUPS,
            rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
        ),
        "granite": GraniteConfig(
            **SMALLER,
            embedding_multiplier=6.0,
            residual_multiplier=0.22,
            attention_multiplier=0.4,
            logits_scaling=0.7,
        ),
        "cohere2": Cohere2Config(
            **SMALLER,
            sliding_window=5,
            layer_types=["sliding_attention", "full_attention"],
            logit_scale=0.3,
        ),
        "bert": BertConfig(**WITHOUT_GROUPS | {"max_position_embeddings": 32}, layer_norm_eps=1e-5),
        "modernbert": ModernBertConfig(
            **WITHOUT_GROUPS | {"num_hidden_layers": 4, "intermediate_size": 16},
            cls_token_id=0,
            sep_token_id=1,
            local_attention=8,
            norm_bias=True,
            classifier_bias=True,
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        ),
        "mixtral": MixtralConfig(
            **SMALLER | {"intermediate_size": 12}, num_local_experts=4, router_aux_loss_coef=0.02, sliding_window=6
        ),
        "qwen2_moe": Qwen2MoeConfig(
            **SMALLER, **EXPERTS, moe_intermediate_size=12, shared_expert_intermediate_size=20, norm_topk_prob=False
        ),
        "qwen3_moe": Qwen3MoeConfig(
            **SMALLER, **EXPERTS, moe_intermediate_size=12, head_dim=12, norm_topk_prob=True, decoder_sparse_step=1
        ),
        "olmoe": OlmoeConfig(**SMALLER | {"intermediate_size": 12, "num_key_value_heads": 2}, **EXPERTS),
        "granitemoe": GraniteMoeConfig(
            **SMALLER | {"intermediate_size": 12},
            num_local_experts=4,
            num_experts_per_tok=2,
            embedding_multiplier=6.0,
            residual_multiplier=0.22,
            attention_multiplier=0.4,
            logits_scaling=0.7,
        ),
        "gpt_oss": GptOssConfig(
            **SMALLER | {"intermediate_size": 12},
            num_local_experts=4,
            num_experts_per_tok=2,
            head_dim=12,
            sliding_window=5,
            swiglu_alpha=1.3,
            swiglu_limit=0.7,
            rope_parameters=YARN | {"truncate": False},
        ),
        "deepseek_v2": DeepseekV2Config(
            **LATENT,
            q_lora_rank=None,
            n_group=4,
            topk_group=1,
            topk_method="group_limited_greedy",
            n_shared_experts=2,
            routed_scaling_factor=1.5,
            rope_parameters=YARN | {"mscale": 0.7, "mscale_all_dim": 0.9},
        ),
        "deepseek_v3": DeepseekV3Config(
            **LATENT,
            q_lora_rank=10,
            n_group=2,
            topk_group=1,
            num_nextn_predict_layers=0,
            rms_norm_eps=1e-3,
            rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        ),
        "glm4_moe": Glm4MoeConfig(
            **SMALLER,
            head_dim=12,
            attention_bias=True,
            use_qk_norm=True,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=12,
            num_nextn_predict_layers=0,
            routed_scaling_factor=1.5,
            rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
        ),
    }


def deviation(name: str, shape: tuple[int, ...]) -> float:
    """Return how far the parameter spreads: 1/sqrt(fan in) for matrices, which sit inputs first only in GPT-2."""
    if len(shape) == 1:
        return 0.3
    embedding = "embed" in name or "wte" in name or "wpe" in name
    inputs_first = ".h." in name
    return 0.5 if embedding else shape[0 if inputs_first else 1] ** -0.5


def randomise(model: torch.nn.Module, rng: np.random.Generator) -> None:
    """Draw every parameter, and bias of a router's choice, anew, around its initial value where that is a constant."""
    biases = [(name, b) for name, b in model.named_buffers() if name.endswith("e_score_correction_bias")]
    with torch.no_grad():
        for name, parameter in sorted([*model.named_parameters(), *biases]):
            noise = rng.standard_normal(parameter.shape, dtype=np.float32) * deviation(name, tuple(parameter.shape))
            centre = parameter if parameter.ndim == 1 else torch.zeros(())
            parameter.copy_(centre + torch.from_numpy(noise))


def record(config: PreTrainedConfig, folder: Path, *, shards: int) -> None:
    """Write one family's folder."""
    config.dtype = "float32"
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    masked = config.model_type in MASKED
    kind = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    model = kind.from_config(config, attn_implementation="eager").eval()
    randomise(model, rng)
    tokens = rng.integers(0, config.vocab_size, (BATCH, LENGTH), dtype=np.int32)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens).long(), **({} if masked else {"use_cache": False})).logits
    if not 0.5 < logits.std() < 10:
        raise RuntimeError(f"{folder.name}: logits spread by {logits.std():.3g}, too flat or too wild to compare")
    shutil.rmtree(folder, ignore_errors=True)
    size_bytes = sum(parameter.numel() * 4 for parameter in model.parameters())
    # A shard's last tensor may not fit, so the limit is a little over an even split.
    model.save_pretrained(folder, max_shard_size=int(size_bytes / shards * 1.1) if shards > 1 else "1GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    np.savez(folder / "golden.npz", tokens=tokens, logits=logits.float().numpy(), versions=np.array(versions))
    for file in folder.iterdir():
        file.chmod(0o644)
    kilobytes = sum(file.stat().st_size for file in folder.iterdir()) / 1e3
    print(f"{folder.name}: {len(list(folder.glob('*.safetensors')))} file(s), {kilobytes:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="by default all")
    arguments = parser.parse_args()
    folder = arguments.folder
    transformers.utils.logging.disable_progress_bar()
    for family, config in configs().items():
        if arguments.families and family not in arguments.families:
            continue
        record(config, folder / family, shards=2 if family == "llama" else 1)


if __name__ == "__main__":
    main()
