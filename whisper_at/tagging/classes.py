"""What the outputs of a head mean: names, kind, calibration and thresholds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..suggest import MAX_LISTED, nearest

KINDS = ("multi_label", "single_label")
OTHER = "other"
"""Class of what is none of the others, where exactly one class is right; it is never an event."""


@dataclass(frozen=True)
class ClassSet:
    """The classes of one head. AudioSet's 527 are one such set (`labels.audioset_classes`).

    Attributes
    ----------
    names : tuple of str
        One name for each output, all different.
    kind : str
        ``multi_label`` (each class alone: sigmoid) or ``single_label`` (exactly one of them: softmax).
    temperature : float
        Logits are divided by it before they become probabilities.
    thresholds : tuple of float, optional
        The probability from which each class makes an event and, for ``multi_label``, counts as a tag.
    mids : tuple of str, optional
        The identifier (``/m/…``) of each class in AudioSet's ontology, for classes that lie in it.
    known : tuple of int, optional
        Indices of the classes that the head has learned to tell, the others' logits being NaN; None for all.
    """

    names: tuple[str, ...]
    kind: str = "multi_label"
    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None
    mids: tuple[str, ...] | None = None
    known: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"classes must have different names, and be at least one; they are {list(self.names)}")
        if self.kind not in KINDS:
            raise ValueError(f"kind must be {' or '.join(KINDS)}, not {self.kind!r}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be a positive number, not {self.temperature}")
        if self.thresholds is not None and len(self.thresholds) != len(self.names):
            raise ValueError(f"there are {len(self.thresholds)} thresholds for {len(self.names)} classes")
        if self.known is not None and not set(self.known) <= set(range(len(self.names))):
            raise ValueError(f"known classes must be indices below {len(self.names)}, not {sorted(self.known)}")

    def __len__(self) -> int:
        return len(self.names)

    def mask(self, logits: Tensor) -> Tensor:
        """Return logits ``(…, classes)`` with NaN for classes that the head has not learned."""
        if self.known is None:
            return logits
        masked = torch.full_like(logits, math.nan)
        masked[..., list(self.known)] = logits[..., list(self.known)]
        return masked

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the calibrated probabilities of logits ``(…, classes)``, in float32 or float64."""
        scaled = (logits if logits.dtype == torch.float64 else logits.float()) / self.temperature
        return scaled.softmax(-1) if self.kind == "single_label" else scaled.sigmoid()

    def log_odds(self, logits: np.ndarray) -> np.ndarray:
        """Return the logits of the calibrated probabilities of logits ``(…, classes)``: what thresholds apply to."""
        if self.kind == "multi_label":
            return logits / self.temperature
        return logit(self.probabilities(torch.from_numpy(logits)).numpy())

    # --- looking classes up ---

    @cached_property
    def _index_by_key(self) -> dict[str, int]:
        """Every name, and MIDs and lower-case names where no other name is the same, with its index."""
        exact = {name: index for index, name in enumerate(self.names)}
        mids = {mid: index for index, mid in enumerate(self.mids or ())}
        return {name.lower(): index for name, index in reversed(exact.items())} | mids | exact

    def index(self, query: int | str) -> int:
        """Return the index of a class given by index, name (in any case) or MID.

        Numbers of numpy, tensors of one number, and digits as a string ("72", as a command line gives) are indices.

        Raises
        ------
        ValueError
            If no class has this index, name or MID; the message offers the nearest names.
        TypeError
            If `query` is neither a whole number nor a string (a bool is not a number here).
        """
        value: Any = query.tolist() if hasattr(query, "tolist") else query
        if isinstance(value, str):
            text = value.strip()
            found = self._index_by_key.get(text, self._index_by_key.get(text.lower()))
            if found is not None:
                return found
            if not text.isdecimal():
                raise ValueError(f"there is no class {value!r}; {self._suggestion(text)}")
            value = text
        elif isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(
                f"a class is given by index, a MID or a name, not {value!r} ({type(value).__name__}); "
                "of a mask of booleans, take numpy.flatnonzero(mask)"
            )
        index = int(value)
        if not 0 <= index < len(self):
            raise ValueError(f"no class has the index {index}; they are 0 to {len(self) - 1}")
        return index

    def indices(self, queries: Any) -> list[int]:
        """Return the index of every class in `queries`, in its order; of all classes for None.

        `queries` is any iterable of what `index` takes (list, tuple, set, range, generator, array, tensor) or one
        such thing by itself. Raises what `index` raises.
        """
        if queries is None:
            return list(range(len(self)))
        if hasattr(queries, "tolist"):  # arrays and tensors; their members become plain ints, not 0-d tensors
            queries = queries.tolist()
        if isinstance(queries, str) or not isinstance(queries, Iterable):
            queries = [queries]
        return [self.index(query) for query in queries]

    def _suggestion(self, text: str) -> str:
        """Return "did you mean …?" with up to three names near `text`, or which names there are."""
        low = text.lower()
        containing = sorted((name for name in self.names if low and low in name.lower()), key=len)
        near = [*nearest(text, self.names, cutoff=0.75), *containing] or nearest(text, self.names, cutoff=0.6)
        if near:
            return f"did you mean {' or '.join(repr(name) for name in list(dict.fromkeys(near))[:3])}?"
        if len(self) > MAX_LISTED:
            return f"print_label_name() lists all {len(self)}"
        return f"they are {', '.join(self.names)}"

    # --- metadata of a file ---

    def metadata(self) -> dict[str, str]:
        """Return all but `mids` as strings, for the metadata of a ``.safetensors``."""
        values = {"classes": list(self.names), "kind": self.kind, "temperature": self.temperature}
        if self.thresholds is not None:  # JSON has no infinity: a class that never counts has null
            values["thresholds"] = [t if math.isfinite(t) else None for t in self.thresholds]
        if self.known is not None:
            values["known"] = list(self.known)
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ClassSet | None:
        """Return the classes that a head's metadata name, or None if they name none.

        Raises
        ------
        ValueError
            If they are there but damaged.
        """
        if not metadata.get("classes", "").startswith("["):
            return None
        try:
            return cls.from_values(
                {
                    "classes": [str(name) for name in json.loads(metadata["classes"])],
                    "kind": metadata.get("kind", "multi_label"),
                    "temperature": float(metadata.get("temperature", 1.0)),
                    "thresholds": json.loads(metadata.get("thresholds", "null")),
                    "known": json.loads(metadata.get("known", "null")),
                }
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"the head's metadata about its classes are damaged: {error}") from None

    def values(self) -> dict[str, Any]:
        """Return names, kind, calibration and, unless all are, ``known`` classes, as results of `transcribe` do."""
        values: dict[str, Any] = {
            "classes": list(self.names),
            "kind": self.kind,
            "temperature": self.temperature,
            "thresholds": None if self.thresholds is None else list(self.thresholds),
        }
        return values if self.known is None else {**values, "known": list(self.known)}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> ClassSet:
        """Return the classes that `values` describes, or the same read from JSON, where None is infinity."""
        thresholds = values.get("thresholds")
        if thresholds is not None:
            thresholds = tuple(math.inf if threshold is None else float(threshold) for threshold in thresholds)
        known = values.get("known")
        known = None if known is None else tuple(map(int, known))
        return cls(tuple(values["classes"]), values["kind"], values["temperature"], thresholds, known=known)


def logit(probabilities: np.ndarray) -> np.ndarray:
    """Return the logits of probabilities, ±700 for 1 and 0; infinite for a threshold above 1, which is never met."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = np.clip(np.log(probabilities) - np.log1p(-probabilities), -700, 700)
    return np.where(probabilities > 1, math.inf, logits)


def sigmoid(value: float) -> float:
    """Return the probability of a logit, however large that is."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))  # exp(-value) would overflow
