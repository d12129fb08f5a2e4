"""Parameters that all repeats of the pattern share, one choice in each file."""

from jaxtrain.models.sharing.base import Sharing, own_and_shared, share, whole_repeat
from jaxtrain.models.sharing.shared_blocks import SharedBlocks
from jaxtrain.models.sharing.shared_layers import SharedLayers

__all__ = ["SharedBlocks", "SharedLayers", "Sharing", "own_and_shared", "share", "whole_repeat"]
