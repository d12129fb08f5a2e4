"""Writers, one in each file. A new one is a frozen dataclass that is a `Writer`."""

from jaxtrain.train.writers.base import Writer
from jaxtrain.train.writers.comma_separated import CSV
from jaxtrain.train.writers.ml_flow import MLflow
from jaxtrain.train.writers.tensor_board import TensorBoard
from jaxtrain.train.writers.weights_and_biases import WeightsAndBiases

__all__ = ["CSV", "MLflow", "TensorBoard", "WeightsAndBiases", "Writer"]
