"""Which embedded recordings sound most like one given: cosine similarity over a file of embeddings."""

from __future__ import annotations

import heapq
import os
from typing import Any, NamedTuple

import numpy as np

from .embedding import Failure, embed
from .fusion import Fusion, fingerprint, load_fusion
from .store import read_config, read_rows


class Hit(NamedTuple):
    """A row and its cosine similarity to the query, between -1 and 1."""

    score: float
    path: str
    start: float
    end: float


def describe(model: Fusion, weights: str | None, level: str) -> dict[str, Any]:
    """What a file of embeddings says of how they were made, enough to make more of them."""
    return {
        "backbone": model.name,
        "layers": list(model.layers),
        "pooling": model.pooling,
        "level": level,
        "width": model.width,
        "weights": weights,
        "network_sha256": fingerprint(model.network),
    }


def restore(config: dict[str, Any], weights: str | None = None, device: str | None = None) -> Fusion:
    """The model that a file's embeddings were made with.

    Raises
    ------
    ValueError
        If the network that is there now has other weights.
    FileNotFoundError, RuntimeError
        If its weights are no longer there.
    """
    source = weights or config["weights"]
    model = load_fusion(config["backbone"], config["layers"], source, config["pooling"], device)
    if fingerprint(model.network) != config["network_sha256"]:
        raise ValueError(
            f"the weights of {config['backbone']} are not those that the embeddings were made with; "
            "name their file with --weights"
        )
    return model


def search(path: str | os.PathLike[str], query: np.ndarray, k: int = 5) -> list[Hit]:
    """The ``k`` rows of a file that are most like the query, best first.

    ``query`` is ``(width,)``, or ``(vectors, width)`` of which the one most like a row counts. The file is read piece
    by piece.

    Raises
    ------
    ValueError
        If the query is of another width.
    """
    query = np.atleast_2d(np.asarray(query, np.float32))
    query = query / np.maximum(np.linalg.norm(query, axis=1, keepdims=True), 1e-12)
    best: list[Hit] = []
    for rows in read_rows(path):
        if rows.vectors.shape[1] != query.shape[1]:
            wanted = rows.vectors.shape[1]
            raise ValueError(f"the query has {query.shape[1]} numbers, but embeddings in {path} have {wanted}")
        norms = np.maximum(np.linalg.norm(rows.vectors, axis=1), 1e-12)
        scores = (rows.vectors @ query.T).max(axis=1) / norms
        for i in np.argsort(-scores, kind="stable")[:k]:
            best.append(Hit(float(scores[i]), rows.paths[i], float(rows.starts[i]), float(rows.ends[i])))
        best = heapq.nlargest(k, best)
    return best


def search_recording(
    path: str | os.PathLike[str],
    recording: str | os.PathLike[str],
    k: int = 5,
    weights: str | None = None,
    device: str | None = None,
) -> list[Hit]:
    """`search` for a recording, embedded as those in the file were.

    Raises
    ------
    RuntimeError
        If the recording cannot be read.
    """
    config = read_config(path)
    model = restore(config, weights, device)
    vectors = []
    for row in embed([recording], model, config["level"]):
        if isinstance(row, Failure):
            raise RuntimeError(row.reason)
        vectors.append(row.vector)
    if not vectors:
        raise RuntimeError(f"{recording} holds no recording")
    return search(path, np.stack(vectors), k)
