"""Domains: the documents of a text in groups of one size, found without labels (c-BTM).

Gururangan et al. (2023), arXiv:2303.14177: balanced k-means over tf-idf embeddings of documents. Two deviations. Terms
are the tokens of the run's tokenizer and not words, so that a model's context is embedded token by token, on the
devices. Embeddings keep one axis a term and are not reduced to 100 dimensions: distances to centres take only the terms
that a document has.
"""

from jaxtrain.data.domains.clusters import Clusters, k_means
from jaxtrain.data.domains.file import DomainsFile
from jaxtrain.data.domains.tf_idf import Embeddings, counted, embedded, inverse_frequencies

__all__ = ["Clusters", "DomainsFile", "Embeddings", "counted", "embedded", "inverse_frequencies", "k_means"]
