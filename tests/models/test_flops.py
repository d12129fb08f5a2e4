"""FLOPs of a token: the closed form, and what the traced program really multiplies."""

import jax
import numpy as np
import pytest
from flax import nnx
from jaxpr_flops import matmul_flops
from jaxtrain_kernels.flash_attention import xla
from tiny import PRESETS, packed_batch, random_params

from jaxtrain.models import presets
from jaxtrain.models.decoder import abstract_model
from jaxtrain.objectives.next_token import NextToken

ROWS, LENGTH = 2, 48  # longer than the windows of the presets


def test_flops_of_llama2_7b_are_six_a_weight_and_causal_scores():
    D, F, layers, vocab, length = 4096, 11_008, 32, 32_000, 4096
    weights = layers * (4 * D * D + 3 * D * F) + vocab * D
    scores = layers * 12 * D * (length + 1) / 2
    assert presets.llama2_7b().flops_per_token(length) == 6 * weights + scores


def test_grouped_heads_and_windows_save_what_they_should():
    mistral, length = presets.mistral_7b(), 16_384
    D, F, KV, window = 4096, 14_336, 1024, 4096
    weights = 32 * (2 * D * D + 2 * D * KV + 3 * D * F) + 32_000 * D
    mean_keys = sum(min(i + 1, window) for i in range(length)) / length
    assert mistral.flops_per_token(length) == pytest.approx(6 * weights + 32 * 12 * D * mean_keys, rel=1e-12)


def _loss(name: str):
    config = PRESETS[name]
    graph, _, _ = abstract_model(config)
    batch = packed_batch([[LENGTH]] * ROWS, LENGTH, vocab_size=config.vocab_size)
    return lambda params: NextToken()(nnx.merge(graph, params), batch, None).minimised["nll"]


@pytest.mark.parametrize("name", PRESETS)
def test_the_forward_pass_multiplies_a_third_of_it(name, monkeypatch):
    for platform in ("CPU", "ACCELERATOR"):  # blocks of one query, so that no masked score is computed
        monkeypatch.setattr(xla, platform, xla.Sizes(rows=1, queries=1, keys=LENGTH, written_out=LENGTH))
    counted = matmul_flops(_loss(name), random_params(PRESETS[name]))
    assert counted * 3 == PRESETS[name].flops_per_token(LENGTH) * ROWS * LENGTH


@pytest.mark.parametrize("name", PRESETS)
def test_forward_and_backward_multiply_all_of_it_the_masked_scores_and_the_scores_again(name):
    config = PRESETS[name]
    counted = matmul_flops(jax.grad(_loss(name)), random_params(config))
    mixers = [block.mixer for block in config.pattern]
    masked = sum(12 * m.heads * m.head_dim * (LENGTH - m.mask.mean_keys(LENGTH)) for m in mixers) * config.repeats
    again = sum(2 * m.heads * m.head_dim * LENGTH for m in mixers) * config.repeats  # in place of keeping them
    assert counted == pytest.approx((config.flops_per_token(LENGTH) + masked + again) * ROWS * LENGTH, rel=1e-12)


def test_the_counter_multiplies_a_scan_by_its_length():
    w = np.zeros((5, 5), np.float32)

    def three_products(x):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=3)[0]

    assert matmul_flops(three_products, np.zeros((2, 5), np.float32)) == 3 * 2 * 2 * 5 * 5
