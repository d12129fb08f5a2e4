"""Memory and collectives of real models on pods, ahead of time, by the TPU compiler's own account."""

import jax.numpy as jnp
import optax
import pytest
from tiny import DECODER, program_of

from jaxtrain.cli.config_file import load
from jaxtrain.mesh import MeshConfig
from jaxtrain.nn.heads.head import TILE
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.schedules import WarmupStableDecay
from jaxtrain.planning.collectives import collectives
from jaxtrain.planning.memory import memory
from jaxtrain.planning.topology import devices_of
from jaxtrain.train import program
from jaxtrain.train.gradients import Accumulate
from jaxtrain.train.phases import Phase
from jaxtrain.train.program import Recipe

BEST_KNOWN_BYTES = 8.72e9  # what the best-known JAX stack needs for this step of Llama-2 7B
MOST_ALIVE_BYTES = 7.11e9


def _compiled(path: str, topology: str):
    config = load(path, []).config
    step = program_of(config.recipe, config.mesh.build(devices_of(topology))).compile()
    # Two gathers and one reduce-scatter of the weights in bf16. A head in tiles is gathered for its backward, too.
    model = config.model
    head_again = model.vocab_size * model.d_model if model.vocab_size > 2 * TILE else 0
    return step, collectives(step.as_text()), 2 * (3 * model.parameter_count + head_again)


def test_llama2_7b_fits_sixteen_v5e_in_less_memory_than_the_best_known_stack():
    step, moved, floor = _compiled("configs/llama2_7b.gin", "v5e:4x4")
    assert memory(step).needed_bytes <= BEST_KNOWN_BYTES
    assert memory(step).peak <= MOST_ALIVE_BYTES
    assert moved.total_bytes <= floor


@pytest.mark.parametrize(("own", "expected"), [(None, 0.6), (WarmupStableDecay(peak=2.0, decay_steps=4), 1.0)])
def test_a_phase_has_its_own_learning_rate_or_that_of_the_whole_run(own, expected, monkeypatch):
    seen = []

    def look(graph, objective, gradients, tx, used_rate):
        seen.append(float(used_rate((optax.EmptyState(), optax.ScaleByScheduleState(jnp.int32(3))))))  # two before
        return lambda state, batch, key: (state, {})

    monkeypatch.setattr(program, "make_train_step", look)
    first = Phase(steps=4, batch_size=8, sequence_length=8, learning_rate=own)
    recipe = Recipe(
        model=DECODER,
        objective=NextToken(),
        optimizer=AdamW(learning_rate=WarmupStableDecay(peak=1.0, decay_steps=5)),  # longer than the phase
        gradients=Accumulate(),
        clip_norm=1.0,
        phases=(first, Phase(steps=1, batch_size=8, sequence_length=8)),
    )
    program_of(recipe, MeshConfig().build())
    assert seen == [pytest.approx(expected)]


def test_llama31_8b_on_sixty_four_v5p_moves_the_floor_and_all_reduces_no_layer():
    _, moved, floor = _compiled("configs/llama31_8b.gin", "v5p:4x4x4")
    assert moved.total_bytes <= floor
    assert moved.bytes("all-reduce") <= floor / 3 / 16  # the second, small hop of the gradients
