"""A step whose loss or gradient is not finite changes nothing but the count; too many in a row end the run."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import runs
from tolerances import EXACT, assert_close

from jaxtrain.objectives.base import Objective, Terms
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.train.run import NonFiniteError

POISON = "Z"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Poisoned(Objective):
    """Next-token loss that is not a number wherever a batch has a certain letter in it."""

    def weights(self, batch):
        return NextToken().weights(batch)

    def __call__(self, model, batch, keys):
        terms = NextToken()(model, batch, keys)
        poison = jnp.where((batch.tokens == ord(POISON)).any(), jnp.nan, 1.0)
        return Terms({"nll": terms.minimised["nll"] * poison}, {})


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path):
    data = runs.write_corpus(tmp_path / "corpus", alphabet="abcdefgh \n" * 30 + POISON)
    seen = []

    def look(run, state):
        seen.append(runs.host_copy((state.params, state.opt_state)))

    config = runs.tiny_run(data, objective=Poisoned(), hooks=(runs.Watch(look=look),))
    result = runs.train(config, tmp_path / "run")
    records = runs.steps_of(tmp_path / "run")
    skipped = [step for step, record in enumerate(records) if record["skipped_in_a_row"]]
    assert 2 <= len(skipped) <= 10
    assert int(result.state.skipped) == len(skipped)
    for step in range(1, len(seen)):
        if step in skipped:
            assert_close(seen[step], seen[step - 1], EXACT, f"step {step + 1}")
        else:
            moved = jax.tree.map(lambda a, b: (a != b).any(), seen[step], seen[step - 1])
            assert all(jax.tree.leaves(moved[0])), f"step {step + 1}"


def test_too_many_in_a_row_end_the_run_naming_the_documents(tmp_path):
    data = runs.write_corpus(tmp_path / "corpus", alphabet=POISON)
    config = runs.tiny_run(data, objective=Poisoned(), max_skipped_steps=3)
    with pytest.raises(NonFiniteError) as caught:
        runs.train(config, tmp_path / "run")
    text = str(caught.value)
    assert text.startswith(
        "step 3: loss or gradient not finite in 3 steps in a row; the parameters are those of step 0."
    )
    assert "rows 16 to 23" in text and "document" in text and ".txt" in text
