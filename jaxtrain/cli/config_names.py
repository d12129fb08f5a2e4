"""What a user who gave an unknown name may have meant: a name spelled like it, or one that other libraries call so."""

import difflib
import types
from collections.abc import Collection, Iterable, Mapping, Sequence

_SHOWN = 4  # most names in an error
_PART = 3  # fewest letters of a name that is a part of another
_OTHER_WORDS = {  # the name here: what it is called elsewhere
    "b1": "beta1",
    "b2": "beta2",
    "batch_size": "bs global_batch_size train_batch_size per_device_train_batch_size",
    "clip_norm": "grad_clip gradient_clip max_grad_norm clip_grad_norm",
    "compute_dtype": "dtype precision mixed_precision",
    "d_model": "hidden_size n_embd embed_dim model_dim dim width",
    "data": "dp data_parallel",
    "epsilon": "eps",
    "every_steps": "every interval eval_interval eval_every save_interval save_every",
    "fsdp": "fully_sharded zero",
    "heads": "n_head n_heads num_heads num_attention_heads",
    "hidden": "d_ff ffn_dim intermediate_size mlp_dim",
    "kv_heads": "n_kv_heads num_kv_heads num_key_value_heads",
    "learning_rate": "lr",
    "max_length": "block_size context_length n_ctx n_positions max_position_embeddings max_seq_len",
    "microbatches": "grad_accum accumulation gradient_accumulation gradient_accumulation_steps accumulate",
    "peak": "lr learning_rate max_lr peak_lr",
    "remat": "checkpointing gradient_checkpointing recompute activation_checkpointing",
    "repeats": "layers depth n_layer n_layers num_layers num_hidden_layers",
    "sequence_length": "seq_len seq_length block_size context_length",
    "source": "dataset text files",
    "stage": "pp pipeline_parallel",
    "steps": "iters max_iters max_steps num_steps train_steps total_steps",
    "tensor": "tp tensor_parallel",
    "theta": "rope_theta",
    "head": "tied_embeddings tie_word_embeddings tie_embeddings weight_tying lm_head",
    "positions": "rope pos_emb position_embedding",
    "warmup_steps": "warmup warmup_iters num_warmup_steps",
    "weight_decay": "wd",
}


def synonyms(name: str, known: Iterable[str]) -> list[str]:
    """Return those of the known names that a name is, or stands for."""
    known = sorted(set(known))
    same = [option for option in known if option == name]
    return same + [option for option in known if name.lower() in _OTHER_WORDS.get(option, "").split()]


def spelled_like(name: str, known: Iterable[str]) -> list[str]:
    """Return the known name that is spelled most like a name, or the shortest with it as a part. It may be none."""
    known = sorted(set(known))
    parts = [option for option in known if len(name) >= _PART and name.lower() in option.lower()]
    return difflib.get_close_matches(name, known, n=1) or sorted(parts, key=len)[:1]


def meant(name: str, known: Iterable[str]) -> list[str]:
    known = list(known)
    return synonyms(name, known) or spelled_like(name, known)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the known names that it may mean. It is empty for none."""
    return either(meant(name, known))


def few(known: Collection[str]) -> str:
    """Return the end of an error where nothing is near: all known names, if they are few."""
    return f"; it has {', '.join(known)}" if 0 < len(known) <= _SHOWN else ""


def either(names: Sequence[str], of: Mapping[str, str] = types.MappingProxyType({})) -> str:
    """Return the end of an error, with what the user may have meant. `of` has the class that a name is a key of."""
    shown = [f"{name!r} of {of[name]}" if name in of else repr(name) for name in names[:_SHOWN]]
    if len(shown) < 2:
        return f"; the nearest valid name is {shown[0]}" if shown else ""
    *others, last = shown
    return f"; the nearest valid names are {', '.join(others)} and {last}"
