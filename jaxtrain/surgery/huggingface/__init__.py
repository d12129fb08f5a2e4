"""Import from and export to Hugging Face folders (config.json, safetensors), for families that the decoder expresses.

`import_folder` returns a DecoderConfig and its arrays, and `export_folder` writes them back. Tensors keep their
bits both ways. A family (models/) says how its config.json becomes a DecoderConfig, and which view of each tensor is
which of our parameters (layout.py). Reading copies out of a view and writing copies into it, so the two cannot
disagree. Most families differ from Llama in few things, and inherit the others (llama_like.py). Left out are quantized
weights, and pickled .bin files, which run code when they are read.
"""

from jaxtrain.surgery.huggingface.export import export_folder
from jaxtrain.surgery.huggingface.families import FAMILIES
from jaxtrain.surgery.huggingface.leaf import Leaf
from jaxtrain.surgery.huggingface.read import import_folder, open_folder

__all__ = ["FAMILIES", "Leaf", "export_folder", "import_folder", "open_folder"]
