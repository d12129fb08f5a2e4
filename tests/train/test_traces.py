"""How often a run traces its step: what is traced again is compiled again, which takes minutes on a pod."""

import chex
import runs

from jaxtrain.train import program
from jaxtrain.train.hooks import Checkpoint, Evaluate
from jaxtrain.train.phases import Phase


def test_a_run_traces_the_step_of_each_phase_once(data, tmp_path, monkeypatch):
    chex.clear_trace_counter()
    phases = tuple(Phase(steps=3, batch_size=8, sequence_length=runs.LENGTH) for _ in range(2))
    make = program.make_train_step
    monkeypatch.setattr(program, "make_train_step", lambda *given: chex.assert_max_traces(make(*given), n=len(phases)))
    hooks = (Checkpoint(every_steps=2), Evaluate(every_steps=2, batches=1))
    assert runs.tiny_run(data, phases=phases, hooks=hooks).train(tmp_path / "run").step == 6
