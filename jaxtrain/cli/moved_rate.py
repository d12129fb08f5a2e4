"""What becomes of the learning rate when a run goes on with another configuration, such as more steps.

A schedule spans all steps of the run. With more steps it is another curve, also at the step that the run goes on from.
"""

import shlex

from jaxtrain.config import TrainConfig
from jaxtrain.train.phases import learning_rate, spans, total_steps

_NOTICED = 0.01  # the least relative change that is worth a line


def moved_rate(before: TrainConfig | None, now: TrainConfig, start: int | None) -> list[str]:
    """Return lines that say how a change of the configuration moves the learning rate, none where it does not."""
    if before is None or not start or start >= total_steps(now.phases):
        return []
    was, will_be = rate_after(before, start), rate_after(now, start)
    if abs(will_be - was) <= _NOTICED * max(abs(was), abs(will_be)):
        return []
    lines = [
        f"note: after step {start} the learning rate goes from {was:.3g} to {will_be:.3g}, as it is configured now"
    ]
    more = another_phase(before, total_steps(now.phases) - start) if start == total_steps(before.phases) else None
    if more:
        lines.append(f"      to stay at {was:.3g}, add a phase in place of more steps: {more}")
    else:
        lines.append("      a phase with a learning_rate of its own has it for its own steps, whatever the others are")
    return lines


def rate_after(config: TrainConfig, step: int) -> float:
    """Return the learning rate of the step after `step`, or of the last one where the run has no more."""
    steps = total_steps(config.phases)
    at = min(step, steps - 1)
    span = next(span for span in spans(config.phases) if at < span.end)
    return float(learning_rate(span, config.optimizer.learning_rate, config.phases)(at))


def longer_phase(config: TrainConfig) -> str:
    """Return the `--set` that makes the last phase twice as long."""
    return f"--set phases.{len(config.phases) - 1}.steps={2 * config.phases[-1].steps}"


def another_phase(config: TrainConfig, steps: int) -> str | None:
    """Return the `--set` that adds a phase at the learning rate that the run ends with.

    None where the last phase has data or a mesh of its own, which the new one would lack.
    """
    last = config.phases[-1]
    if last.data or last.mesh:
        return None
    rate = f"@jaxtrain.optim.schedules.Constant(peak={rate_after(config, total_steps(config.phases)):.3g})"
    sizes = f"batch_size={last.batch_size}, sequence_length={last.sequence_length}"
    phase = f"@Phase(steps={steps}, {sizes}, learning_rate={rate})"
    return f"--set phases.{len(config.phases)}={shlex.quote(phase)}"
