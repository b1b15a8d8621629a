"""Search a file of embeddings for the recordings that sound most like a given one, by cosine similarity."""

from __future__ import annotations

import heapq
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .embedding import Failure, embed
from .fusion import Fusion, load_fusion, weights_sha256
from .store import read_batches, read_config


class SearchResult(NamedTuple):
    """A row of the file and its cosine similarity to the query, between -1 and 1."""

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
    model = load_fusion(config["backbone"], config["layers"], weights or config["weights"], config["pooling"], device)
    if weights_sha256(model.network) != config["network_sha256"]:
        raise ValueError(
            f"the weights of {config['backbone']} are not those that the embeddings were made with; "
            "name their file with --weights"
        )
    return model


def search_vectors(path: str | os.PathLike[str], query: np.ndarray, k: int = 5) -> list[SearchResult]:
    """Return the ``k`` rows of a file that are most similar to a query, best first.

    Parameters
    ----------
    path : str or path
        File of embeddings; it is read in batches.
    query : ndarray, shape (width,) or (vectors, width)
        One vector, or several of which the most similar to a row counts.
    k : int
        Number of rows.

    Raises
    ------
    ValueError
        If the query has another width than the file.
    """
    query = np.atleast_2d(np.asarray(query, np.float32))
    query = query / np.maximum(np.linalg.norm(query, axis=1, keepdims=True), 1e-12)
    best: list[SearchResult] = []
    for batch in read_batches(path):
        if batch.vectors.shape[1] != query.shape[1]:
            width = batch.vectors.shape[1]
            raise ValueError(f"the query has {query.shape[1]} numbers, but embeddings in {path} have {width}")
        norms = np.maximum(np.linalg.norm(batch.vectors, axis=1), 1e-12)
        scores = (batch.vectors @ query.T).max(axis=1) / norms
        best += [
            SearchResult(float(scores[i]), batch.paths[i], float(batch.starts[i]), float(batch.ends[i]))
            for i in np.argsort(-scores, kind="stable")[:k]
        ]
        best = heapq.nlargest(k, best)
    return best


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
