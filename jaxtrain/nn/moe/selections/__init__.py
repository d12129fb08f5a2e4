"""Which experts compute a token, one way in each file."""

from jaxtrain.nn.moe.selections.base import Selection
from jaxtrain.nn.moe.selections.expert_choice import ExpertChoice
from jaxtrain.nn.moe.selections.group_limited import GroupLimited
from jaxtrain.nn.moe.selections.top_k import TopK

__all__ = ["ExpertChoice", "GroupLimited", "Selection", "TopK"]
