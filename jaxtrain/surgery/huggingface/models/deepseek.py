"""DeepSeek-V2 (2024), arXiv:2405.04434, and DeepSeek-V3 (2024), arXiv:2412.19437: latent attention and mixtures.

The layers of DeepSeek-V3 that predict tokens further ahead are not read. Its published weights are in FP8, which is
refused: convert them to bfloat16 first.
"""

from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.mixers.latent_attention import LatentAttentionConfig
from jaxtrain.nn.moe.selections import GroupLimited, Selection, TopK
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.positions import InterleavedRotary
from jaxtrain.nn.positions.rotary_embedding import RotaryEmbedding
from jaxtrain.nn.rope import YarnScaling
from jaxtrain.surgery.huggingface.layout import Axes, Tensor, fused, torch_linear, torch_linears
from jaxtrain.surgery.huggingface.llama_like import norm_tensors
from jaxtrain.surgery.huggingface.mixture_like import mixture_of
from jaxtrain.surgery.huggingface.rope import mscale_of, read_rope, write_mscale, write_rope
from jaxtrain.surgery.huggingface.settings import Settings
from jaxtrain.surgery.huggingface.shared_mixture_like import SHARED_MIXTURE, SharedMixtureLike

LATENT = SHARED_MIXTURE | {"q_lora_rank": 1536, "kv_lora_rank": 512}
LATENT |= {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}


def _code(version: str) -> dict[str, str]:
    """Return the code of a model that its published config.json names, which transformers has as well."""
    modeling = f"modeling_deepseek.Deepseek{version}"
    return {
        "AutoConfig": f"configuration_deepseek.Deepseek{version}Config",
        "AutoModel": f"{modeling}Model",
        "AutoModelForCausalLM": f"{modeling}ForCausalLM",
    }


class DeepSeekV2(SharedMixtureLike):
    model_type = "deepseek_v2"
    architecture = "DeepseekV2ForCausalLM"
    sigmoid = False
    judged_by = 1
    own_code = _code("V2")
    defaults = LATENT | {
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "moe_intermediate_size": 1407,
        "topk_method": "greedy",
    }

    def interleaved(self, s: Settings) -> bool:
        return True

    def mixer(self, s: Settings, layer: int, window: int | None) -> LatentAttentionConfig:
        heads, rotated = s["num_attention_heads"], s["qk_rope_head_dim"]
        s.require("latent attention has a key for each head", num_key_value_heads=heads)
        s.require("latent attention has no biases", attention_bias=False)
        s.require_same("head_dim", "qk_rope_head_dim")
        s.require("the code of another model", auto_map=self.own_code)  # the published files' copy
        head_dim, mscale = s["qk_nope_head_dim"], mscale_of(s)
        s.require("it is the sum of the two parts of a head", qk_head_dim=head_dim + rotated)
        return LatentAttentionConfig(
            heads=heads,
            latent=s["kv_lora_rank"],
            head_dim=head_dim,
            rotated_dim=rotated,
            value_dim=s["v_head_dim"],
            query_latent=s["q_lora_rank"],
            positions=read_rope(s, self.rope_keys._replace(interleaved=self.interleaved(s))),
            norm=RMSNormConfig(epsilon=1e-6),  # whatever rms_norm_eps is
            scale=None if mscale == 1.0 else (head_dim + rotated) ** -0.5 * mscale * mscale,
        )

    def selection(self, s: Settings) -> Selection:
        s.require("weights of experts are not divided by their sum", norm_topk_prob=False)
        method = s["topk_method"]
        if method not in ("greedy", "group_limited_greedy"):
            raise ValueError(f"topk_method={method!r} is not one of greedy, group_limited_greedy")
        if method == "greedy":
            s.pass_over("n_group", "topk_group")
            return TopK()
        return GroupLimited(groups=s["n_group"], kept=s["topk_group"], judged_by=1)

    def write_more(self, config: DecoderConfig) -> dict[str, Any]:
        limited = isinstance(mixture_of(config.pattern[0]).selection, GroupLimited)
        return super().write_more(config) | {"topk_method": "group_limited_greedy" if limited else "greedy"}

    def write_mixers(self, config: DecoderConfig) -> dict[str, Any]:
        mixer = latent_of(config.pattern[0])
        positions = mixer.positions
        if not isinstance(positions, RotaryEmbedding):
            raise ValueError(f"it has mixer.positions={positions!r}, the family has rotary embeddings")
        rope = write_rope(positions, self.rope_keys)
        if isinstance(positions.scaling, YarnScaling):
            usual = (mixer.head_dim + mixer.rotated_dim) ** -0.5
            rope["rope_scaling"] |= write_mscale(positions.scaling, mixer.scale, usual)
        return {
            "num_attention_heads": mixer.heads,
            "num_key_value_heads": mixer.heads,
            "kv_lora_rank": mixer.latent,
            "q_lora_rank": mixer.query_latent,
            "qk_nope_head_dim": mixer.head_dim,
            "qk_rope_head_dim": mixer.rotated_dim,
            "v_head_dim": mixer.value_dim,
            "attention_bias": False,
            **rope,
        }

    def mixer_tensors(self, block: BlockConfig, D: Axes) -> list[Tensor]:
        c = latent_of(block)
        H, K, R, V, C = c.heads, c.head_dim, c.rotated_dim, c.value_dim, c.latent
        queries: list[Tensor] = []
        if c.query_latent:
            queries += torch_linear("self_attn.q_a_proj", D, (c.query_latent,), "mixer", "query_down")
            queries += norm_tensors("self_attn.q_a_layernorm", c.norm, c.query_latent, "mixer", "query_norm")
            queries += torch_linear("self_attn.q_b_proj", (c.query_latent,), (H, K + R), "mixer", "query")
        else:
            queries += torch_linear("self_attn.q_proj", D, (H, K + R), "mixer", "query")
        down, rotated = ("mixer", "down"), ("mixer", "rotated_key")
        return [
            *queries,
            torch_linears("self_attn.kv_a_proj_with_mqa", D, ((C,), down), ((R,), rotated)),
            *norm_tensors("self_attn.kv_a_layernorm", c.norm, C, "mixer", "latent_norm"),
            fused(
                "self_attn.kv_b_proj.weight",
                (H * (K + V), C),
                (("mixer", "key", "kernel"), lambda w: w.reshape(H, K + V, C)[:, :K].transpose(2, 0, 1)),
                (("mixer", "value", "kernel"), lambda w: w.reshape(H, K + V, C)[:, K:].transpose(2, 0, 1)),
            ),
            *torch_linear("self_attn.o_proj", (H, V), D, "mixer", "output"),
        ]


class DeepSeekV3(DeepSeekV2):
    model_type = "deepseek_v3"
    architecture = "DeepseekV3ForCausalLM"
    sigmoid = True
    judged_by = 2
    own_code = _code("V3")
    defaults = LATENT | {
        "num_key_value_heads": 128,
        "max_position_embeddings": 4096,
        "n_routed_experts": 256,
        "moe_intermediate_size": 2048,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 3,
        "norm_topk_prob": True,
        "rope_interleave": True,
    }

    def interleaved(self, s: Settings) -> bool:
        return s["rope_interleave"]

    def selection(self, s: Settings) -> Selection:
        s.require("the family's choice of experts", topk_method="noaux_tc")
        return SharedMixtureLike.selection(self, s)

    def write_more(self, config: DecoderConfig) -> dict[str, Any]:
        interleaved = isinstance(latent_of(config.pattern[0]).positions, InterleavedRotary)
        return SharedMixtureLike.write_more(self, config) | {"rope_interleave": interleaved}


def latent_of(block: BlockConfig) -> LatentAttentionConfig:
    """Return the latent attention of a block. Raises ValueError for another mixer."""
    if not isinstance(block.mixer, LatentAttentionConfig):
        raise ValueError(f"it has the mixer {type(block.mixer).__name__}, the family has latent attention")
    return block.mixer
