"""Balanced k-means: groups of documents whose sizes differ by at most one.

Documents are assigned in rounds. Each asks for the nearest group that has room. A group that is asked by more than it
has room for takes those that would lose most by their second choice. The paper solves the assignment exactly, by an
auction; with two groups this is exact too, and it takes a pass a group.
"""

from typing import NamedTuple

import numpy as np

from jaxtrain.data.domains.tf_idf import Embeddings

MOST_ROUNDS = 50


class Clusters(NamedTuple):
    """The centres [K, W], the group of each document, and the sum of the squared distances to the centres."""

    centres: np.ndarray
    labels: np.ndarray
    inertia: float


def k_means(rows: Embeddings, groups: int, width: int, *, seed: int = 0) -> Clusters:
    """Return balanced groups of documents. The first centres are documents, chosen by k-means++.

    Arthur and Vassilvitskii (2007). It ends when no document moves; of all rounds the best is returned.

    Raises:
        ValueError: there are fewer documents than groups.
    """
    if not 1 <= groups <= rows.documents:
        raise ValueError(f"{groups=}: must be at least 1 and at most the number of documents, {rows.documents}")
    centres = _first_centres(rows, groups, width, np.random.default_rng(seed))
    best, before = None, np.full(rows.documents, -1)
    for _ in range(MOST_ROUNDS):
        labels = balanced(squared_distances(rows, centres))
        centres = rows.means(labels, groups, width)
        inertia = float(squared_distances(rows, centres)[np.arange(rows.documents), labels].sum())
        if best is None or inertia < best.inertia:
            best = Clusters(centres, labels, inertia)
        if (labels == before).all():
            break
        before = labels
    assert best is not None, "there is at least one round"
    return best


def squared_distances(rows: Embeddings, centres: np.ndarray) -> np.ndarray:
    """Return the squared distances of unit rows to centres, [N, K]."""
    return 1 - 2 * rows.products(centres) + np.sum(centres**2, axis=1)


def balanced(distances: np.ndarray) -> np.ndarray:
    """Return a group for each document from its distances [N, K]. Sizes differ by at most one."""
    count, groups = distances.shape
    least, larger = divmod(count, groups)
    labels, sizes = np.full(count, -1), np.zeros(groups, np.int64)
    is_open = np.full(groups, True)
    while (waiting := np.flatnonzero(labels < 0)).size:
        left = np.where(is_open, distances[waiting], np.inf)
        choice = left.argmin(axis=1)
        second = np.partition(left, 1, axis=1)[:, 1] if is_open.sum() > 1 else np.zeros(len(waiting))
        loss = second - left[np.arange(len(waiting)), choice]
        for group in np.argsort(-np.bincount(choice, minlength=groups), kind="stable"):
            if not is_open[group]:
                continue
            asked = np.flatnonzero(choice == group)
            room = least + (larger > 0) - sizes[group]
            taken = asked[np.argsort(-loss[asked], kind="stable")][:room]
            labels[waiting[taken]] = group
            sizes[group] += len(taken)
            if sizes[group] == least + 1:
                larger -= 1
            is_open[group] = sizes[group] < least + (larger > 0)
    return labels


def _first_centres(rows: Embeddings, groups: int, width: int, random: np.random.Generator) -> np.ndarray:
    """Return documents as centres: each is drawn in proportion to the squared distance to the nearest one before it."""
    centres, nearest = np.zeros((groups, width)), np.ones(rows.documents)
    for number in range(groups):
        total = nearest.sum()
        chosen = random.choice(rows.documents, p=nearest / total if total > 0 else None)
        where = slice(rows.starts[chosen], rows.starts[chosen + 1])
        centres[number, rows.terms[where]] = rows.values[where]
        nearest = np.minimum(nearest, np.maximum(squared_distances(rows, centres[number : number + 1])[:, 0], 0))
    return centres
