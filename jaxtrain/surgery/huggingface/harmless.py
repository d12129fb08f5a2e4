"""The settings of a config.json that do not change what the decoder computes. All others must be understood."""

from typing import Any

_HARMLESS = (
    # names
    "architectures model_type transformers_version tokenizer_class finetuning_task _name_or_path _commit_hash "
    "id2label label2id num_labels _num_labels problem_type task_specific_params prefix "
    "unsloth_version unsloth_fixed is_llama_config transformers.js_config "
    # how tensors are stored, which the tensor files also say
    "torch_dtype dtype "
    # tokens
    "bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id "
    "decoder_start_token_id "
    # training only; of GPT-2 the dropout of embeddings and of attention weights, which the layers do not have
    "initializer_range gradient_checkpointing embd_pdrop attn_pdrop "
    # how the same numbers are computed, and which of them are returned
    "use_cache cache_implementation attn_implementation _attn_implementation _attn_implementation_autoset "
    "_flash_attn_2_enabled chunk_size_feed_forward reorder_and_upcast_attn torchscript use_bfloat16 "
    "tf_legacy_loss output_router_logits output_attentions output_hidden_states output_past return_dict is_decoder "
    # sampling, from before generation_config.json
    "do_sample max_length min_length temperature top_k top_p typical_p num_beams num_beam_groups "
    "diversity_penalty repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size "
    "bad_words_ids num_return_sequences early_stopping forced_bos_token_id forced_eos_token_id "
    "remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens "
    "return_dict_in_generate output_scores "
    # heads of other tasks, and settings that no model reads any more
    "summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj "
    "predict_special_tokens n_special max_sequence_length"
)
HARMLESS = frozenset(_HARMLESS.split())
NEUTRAL: dict[str, Any] = {  # settings that change the numbers, except at this value and at null
    "add_cross_attention": False,
    "attention_dropout": 0.0,
    "is_encoder_decoder": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "pruned_heads": {},
    "rope_interleaved": False,
    "router_jitter_noise": 0.0,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_encoder_decoder": False,
    "use_bidirectional_attention": False,
}
