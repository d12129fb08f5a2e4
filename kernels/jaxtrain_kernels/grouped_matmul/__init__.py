"""Matrix products of groups of rows, each with the weights of its group, as mixtures of experts need them."""

from jaxtrain_kernels.grouped_matmul.api import IMPLEMENTATIONS, grouped_matmul, transposed_grouped_matmul

__all__ = ["IMPLEMENTATIONS", "grouped_matmul", "transposed_grouped_matmul"]
