"""Search a file of embeddings for the recordings that sound most like a given one.

Vectors of frozen encoders point all in about the same direction, so that the cosine of any two is near 1. Before they
are compared, each number is therefore standardised by its mean and deviation over the file: 0 then is the similarity of
sounds that have no more in common than any two of the file.
"""

from __future__ import annotations

import heapq
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .embedding import Failure, embed
from .fusion import Fusion, load_fusion, weights_sha256
from .store import read_batches, read_config

MIN_ROWS = 10
"""Rows from which on a file tells how its numbers vary; those of a smaller one are compared as they are."""


class SearchResult(NamedTuple):
    """A row of the file and its similarity to the query, between -1 and 1: the cosine of standardised vectors."""

    score: float
    path: str
    start: float
    end: float


def embedding_config(model: Fusion, weights: str | os.PathLike[str] | None, level: str) -> dict[str, Any]:
    """Describe how embeddings are made, for `EmbeddingWriter` to store beside them and `load_from_config` to use.

    ``weights`` and ``level`` are those given to `load_fusion` and `embed`.
    """
    if weights is not None and (file := Path(weights).expanduser()).exists():
        weights = file.resolve()
    return {
        "backbone": model.name,
        "layers": list(model.layers),
        "pooling": model.pooling,
        "level": level,
        "width": model.width,
        "weights": None if weights is None else str(weights),
        "compute_type": model.compute_type,
        "network_sha256": weights_sha256(model.network),
    }


def load_from_config(config: dict[str, Any], weights: str | None = None, device: str | None = None) -> Fusion:
    """Load the model that a file's embeddings were made with.

    Parameters
    ----------
    config : dict
        From `store.read_config`.
    weights : str, optional
        Where the weights are now, if not where they were.
    device : str, optional
        As of `load_fusion`.

    Raises
    ------
    ValueError
        If the network's weights are not the same as they were.
    FileNotFoundError, RuntimeError
        If its weights are no longer there.
    """
    model = load_fusion(
        config["backbone"],
        config["layers"],
        weights or config["weights"],
        config["pooling"],
        device,
        compute_type=config.get("compute_type", "float32"),
    )
    if weights_sha256(model.network) != config["network_sha256"]:
        raise ValueError(
            f"the weights of {config['backbone']} are not those that the embeddings were made with; "
            "name their file with --weights"
        )
    return model


def search_vectors(
    path: str | os.PathLike[str], query: np.ndarray, k: int = 5, standardize: bool = True
) -> list[SearchResult]:
    """Return the ``k`` rows of a file that are most similar to a query, best first.

    Parameters
    ----------
    path : str or path
        File of embeddings; it is read in batches.
    query : ndarray, shape (width,) or (vectors, width)
        One vector, or several of which the most similar to a row counts.
    k : int
        Number of rows.
    standardize : bool
        Compare standardised vectors, see above; not done for files of fewer than ten rows.

    Raises
    ------
    ValueError
        If the query has another width than the file.
    """
    query = np.atleast_2d(np.asarray(query, np.float32))
    mean, deviation = _statistics(path, query.shape[1])
    if not standardize:
        mean, deviation = np.zeros_like(mean), np.ones_like(deviation)
    query = _unit_vectors((query - mean) / deviation)
    best: list[SearchResult] = []
    for batch in read_batches(path):
        scores = (_unit_vectors((batch.vectors - mean) / deviation) @ query.T).max(axis=1)
        best += [
            SearchResult(float(scores[i]), batch.paths[i], float(batch.starts[i]), float(batch.ends[i]))
            for i in np.argsort(-scores, kind="stable")[:k]
        ]
        best = heapq.nlargest(k, best)
    return best


def _unit_vectors(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _statistics(path: str | os.PathLike[str], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of a file's vectors; 0 and 1 if it has too few of them."""
    count, mean, squares = 0, np.zeros(width), np.zeros(width)
    for batch in read_batches(path):
        if batch.vectors.shape[1] != width:
            raise ValueError(f"the query has {width} numbers, but embeddings in {path} have {batch.vectors.shape[1]}")
        vectors = batch.vectors.astype(np.float64)  # Chan et al., 1979: updates that lose no digits
        n, new = len(vectors), vectors.mean(0)
        squares += ((vectors - new) ** 2).sum(0) + (new - mean) ** 2 * count * n / (count + n)
        mean += (new - mean) * n / (count + n)
        count += n
    if count < MIN_ROWS:
        return np.zeros(width, np.float32), np.ones(width, np.float32)
    deviation = np.sqrt(squares / count)
    least = max(1e-12, float(deviation.max()) * 1e-6)  # what never changes says nothing
    return mean.astype(np.float32), np.maximum(deviation, least).astype(np.float32)


def search_recording(
    path: str | os.PathLike[str],
    recording: str | os.PathLike[str],
    k: int = 5,
    weights: str | None = None,
    device: str | None = None,
) -> list[SearchResult]:
    """Return the ``k`` rows of a file that sound most like a recording, best first.

    The recording is embedded as those in the file were; see `search_vectors` and `load_from_config`.

    Raises
    ------
    RuntimeError
        If the recording cannot be read.
    """
    config = read_config(path)
    model = load_from_config(config, weights, device)
    vectors = []
    for result in embed([recording], model, config["level"]):
        if isinstance(result, Failure):
            raise RuntimeError(result.reason)
        vectors.append(result.vector)
    if not vectors:
        raise RuntimeError(f"{recording} holds no recording")
    return search_vectors(path, np.stack(vectors), k)
