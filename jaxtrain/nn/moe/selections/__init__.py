"""Which experts compute a token, one way in each file."""

from jaxtrain.nn.moe.selections.base import Selection
from jaxtrain.nn.moe.selections.by_skills import BySkills
from jaxtrain.nn.moe.selections.cluster_dropout import ClusterDropout
from jaxtrain.nn.moe.selections.expert_choice import ExpertChoice
from jaxtrain.nn.moe.selections.group_limited import GroupLimited
from jaxtrain.nn.moe.selections.hash import Hash
from jaxtrain.nn.moe.selections.top_k import TopK

__all__ = ["BySkills", "ClusterDropout", "ExpertChoice", "GroupLimited", "Hash", "Selection", "TopK"]
