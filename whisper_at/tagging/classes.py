"""What the outputs of a head mean: names, kind, calibration and thresholds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

KINDS = ("multi_label", "single_label")


@dataclass(frozen=True)
class ClassSet:
    """What a head's outputs mean.

    Attributes
    ----------
    names : one for each output
    kind : ``multi_label`` (each class alone: sigmoid) or ``single_label`` (one of them: softmax)
    temperature : logits are divided by it before they become probabilities
    thresholds : the probability from which each class makes an event and, of ``multi_label``, counts as a tag; or None
    """

    names: tuple[str, ...]
    kind: str = "multi_label"
    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"classes must have different names, and be at least one; they are {list(self.names)}")
        if self.kind not in KINDS:
            raise ValueError(f"kind must be {' or '.join(KINDS)}, not {self.kind!r}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be a positive number, not {self.temperature}")
        if self.thresholds is not None and len(self.thresholds) != len(self.names):
            raise ValueError(f"there are {len(self.thresholds)} thresholds for {len(self.names)} classes")

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities of logits ``(…, classes)``."""
        scaled = logits.float() / self.temperature
        return scaled.softmax(-1) if self.kind == "single_label" else scaled.sigmoid()

    def metadata(self) -> dict[str, str]:
        """As strings, for the metadata of a ``.safetensors``."""
        values = {"classes": list(self.names), "kind": self.kind, "temperature": self.temperature}
        if self.thresholds is not None:  # JSON has no infinity: a class that never counts has null
            values["thresholds"] = [t if math.isfinite(t) else None for t in self.thresholds]
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ClassSet | None:
        """The classes that a head's metadata tell of; None for AudioSet's.

        Raises ValueError where they are there but damaged.
        """
        if not metadata.get("classes", "").startswith("["):
            return None
        try:
            thresholds = json.loads(metadata.get("thresholds", "null"))
            return cls(
                tuple(str(name) for name in json.loads(metadata["classes"])),
                metadata.get("kind", "multi_label"),
                float(metadata.get("temperature", 1.0)),
                None if thresholds is None else tuple(math.inf if t is None else float(t) for t in thresholds),
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"the head's metadata about its classes are damaged: {error}") from None
