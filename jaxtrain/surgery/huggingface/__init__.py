"""Weights in and out of Hugging Face folders: config.json and safetensors, for the families that the decoder expresses.

`import_folder` gives a DecoderConfig and its parameters, `export_folder` goes back; tensors keep their bits both ways.
What a family is, is data: how its config.json reads as a DecoderConfig (llama.py, gpt2.py), and which view of each of
its tensors is which of our parameters (layout.py). Reading copies out of the view and writing copies into it, so the
two cannot disagree. Left out: quantized weights, and pickled .bin files, which run code when they are read.
"""

from jaxtrain.surgery.huggingface.export import export_folder
from jaxtrain.surgery.huggingface.families import FAMILIES
from jaxtrain.surgery.huggingface.leaf import Leaf
from jaxtrain.surgery.huggingface.read import import_folder, open_folder

__all__ = ["FAMILIES", "Leaf", "export_folder", "import_folder", "open_folder"]
