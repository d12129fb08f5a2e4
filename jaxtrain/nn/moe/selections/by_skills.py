"""Skills of tasks: SkillNet, Zhang et al. (2022), arXiv:2203.03312, section 3."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.moe.routing import told
from jaxtrain.nn.moe.selections.base import Selection


@dataclass(frozen=True, kw_only=True, slots=True)
class BySkills(Selection):
    """The experts that a table gives the task of the token: `skills` has a tuple of experts for each task.

    `top_k` is the number of skills of the task that has most. A skill that is appended changes nothing for other tasks.
    """

    skills: tuple[tuple[int, ...], ...]
    paper: ClassVar[str] = "arXiv:2203.03312"

    def __post_init__(self):
        for task, own in enumerate(self.skills):
            if not own or len(set(own)) < len(own):
                raise ValueError(f"skills[{task}]={own}: a task has at least one skill, and each once")
        if not self.skills:
            raise ValueError("skills=(): give a tuple of experts for each task")

    @property
    def task_count(self) -> int | None:
        return len(self.skills)

    @property
    def reads_scores(self) -> bool:
        return False

    def check(self, experts: int, top_k: int) -> None:
        for task, own in enumerate(self.skills):
            if bad := [skill for skill in own if not 0 <= skill < experts]:
                raise ValueError(f"skills[{task}]={own}: there is no expert {bad[0]}, they are 0 to {experts - 1}")
        if (most := max(map(len, self.skills))) != top_k:
            raise ValueError(f"top_k={top_k}: the task with most skills has {most}; set top_k={most}")

    def __call__(self, scores: Float[Array, "B L E"], top_k: int, context: TokenContext) -> Float[Array, "B L E"]:
        table_TE = np.zeros((len(self.skills), scores.shape[-1]), np.float32)
        for task, own in enumerate(self.skills):
            table_TE[task, list(own)] = 1
        return jnp.asarray(table_TE)[told(context.tasks, "tasks", self)]
