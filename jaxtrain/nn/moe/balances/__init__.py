"""How the loads of experts are kept alike, one way in each file."""

from jaxtrain.nn.moe.balances.base import Balance
from jaxtrain.nn.moe.balances.cluster_loss import ClusterLoss
from jaxtrain.nn.moe.balances.excess_loss import ExcessLoss
from jaxtrain.nn.moe.balances.load_loss import LoadLoss
from jaxtrain.nn.moe.balances.mutual_information import MutualInformation
from jaxtrain.nn.moe.balances.router_bias import RouterBias
from jaxtrain.nn.moe.balances.row_loss import RowLoss
from jaxtrain.nn.moe.balances.target_bias import TargetBias
from jaxtrain.nn.moe.balances.z_loss import ZLoss

__all__ = [
    "Balance",
    "ClusterLoss",
    "ExcessLoss",
    "LoadLoss",
    "MutualInformation",
    "RouterBias",
    "RowLoss",
    "TargetBias",
    "ZLoss",
]
