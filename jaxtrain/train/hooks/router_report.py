"""Where the tokens of held-out text go in a mixture of experts."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.data.tokenizers.base import Tokenizer
from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.shapes import ParamTree
from jaxtrain.train.hooks.base import Hook, RunView, check_interval, due
from jaxtrain.train.routed import has_mixtures
from jaxtrain.train.state import TrainState


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterReport(Hook):
    """Count the tokens, pairs and drops of every expert over the first `batches` batches of each validation set.

    Loads and pairs go to the folder `routing` of the run, which `jaxtrain plot --experts` draws. The fullest expert,
    the entropy of the router and the like become numbers of each layer.
    """

    every_steps: int
    batches: int = 20
    paper: ClassVar[str] = "arXiv:2505.20225"

    def __post_init__(self):
        check_interval(self)
        if self.batches < 1:
            raise ValueError(f"batches={self.batches}: must be at least 1")

    @property
    def name(self) -> str:
        return "router_report"

    @property
    def validation_batches(self) -> int:
        return self.batches

    def check(self, where: str, model: DecoderConfig, tokenizer: Tokenizer) -> None:
        if not has_mixtures(model):
            raise ValueError(f"{where}=RouterReport: no layer of the model has experts; remove the hook")

    def after_step(self, run: RunView, state: TrainState, hook_state: ParamTree) -> tuple[TrainState, ParamTree]:
        if due(run, self.every_steps):
            run.count_routing(run.evaluation_models(state)[""], batches=self.batches)
        return state, hook_state
