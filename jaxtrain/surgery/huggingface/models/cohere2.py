"""Command R7B (Cohere 2): parallel layers that read the same norm, LayerNorm without bias, scaled logits.

Three layers of four have a window and rotary embeddings, of neighbours; the fourth has neither. Cohere (2024), model
card of c4ai-command-r7b-12-2024.
"""

from dataclasses import replace
from typing import Any

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.joins import ParallelSharedNorm
from jaxtrain.nn.norms.layer_norm import LayerNormConfig
from jaxtrain.nn.positions import NoPositions, Positions
from jaxtrain.surgery.huggingface.family import head_of, scale_of
from jaxtrain.surgery.huggingface.llama_like import DEFAULTS, LlamaLike
from jaxtrain.surgery.huggingface.rope import RopeKeys, read_rope
from jaxtrain.surgery.huggingface.settings import Settings
from jaxtrain.surgery.huggingface.windows import Windows, patterned_windows, write_layer_types


class Cohere2(LlamaLike):
    model_type = "cohere2"
    architecture = "Cohere2ForCausalLM"
    epsilon = "layer_norm_eps"
    derived = ("head_dim",)
    rope_keys = RopeKeys(interleaved=True)
    norms = {"mixer_norm": "input_layernorm"}
    defaults = DEFAULTS | {
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "logit_scale": 0.0625,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
    }

    def windows(self, s: Settings) -> Windows:
        return patterned_windows(s)

    def write_windows(self, windows: Windows) -> dict[str, Any]:
        return write_layer_types(windows)

    def norm(self, epsilon: float) -> LayerNormConfig:
        return LayerNormConfig(epsilon=epsilon, bias=False)

    def positions(self, s: Settings, layer: int, window: int | None) -> Positions:
        rope = read_rope(s, self.rope_keys)
        return rope if window else NoPositions()

    def block(self, s: Settings, common: BlockConfig) -> BlockConfig:
        return replace(common, join=ParallelSharedNorm())

    def whole(self, s: Settings, common: DecoderConfig) -> DecoderConfig:
        s.pass_over("layer_switch", "use_embedding_sharing", "use_parallel_embedding")  # what other settings say, too
        s.require("models of another kind have it", use_qk_norm=False, use_parallel_block=True, rotary_pct=1.0)
        s.require("models of another kind have it", use_gated_activation=True, position_embedding_type="rope_gptj")
        s.require("models of another kind have it", order_of_interleaved_layers="local_attn_first")
        return replace(common, head=head_of(tied=common.head.tied, scale=float(s["logit_scale"])))

    def write_more(self, config: DecoderConfig) -> dict[str, Any]:
        return {"logit_scale": scale_of(config.head)}
