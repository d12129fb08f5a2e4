"""A teacher's logits in a folder, so that students train without its arrays."""

from jaxtrain.train.logits.folder import LogitsFolder
from jaxtrain.train.logits.write import write_logits

__all__ = ["LogitsFolder", "write_logits"]
