"""The compact vocabulary of nano.en: text tokens, five special tokens, one for all others, and the timestamps."""

from __future__ import annotations

from .text import frame_classes, text_token_ids, token_id, tokenizer


class Vocabulary:
    """Map from openai-whisper's token ids to compact indices.

    Attributes
    ----------
    ids : list of int
        openai-whisper's ids of the text and special tokens; the compact index is the position.
    other, n_other : int
        Index that stands for all unused tokens, and their number.
    time0, size : int
        Index of the first of 1,501 timestamps, and number of indices.
    classes : dict of str to int
        Words of the frame classifier.
    """

    def __init__(self) -> None:
        t = tokenizer()
        special = [t.eot, t.sot, t.sot_prev, t.no_speech, t.no_timestamps]
        self.ids = [*text_token_ids(), *special]
        self._index_of = {id_: i for i, id_ in enumerate(self.ids)}
        self.eot, self.sot, self.sot_prev, self.no_speech, self.no_timestamps = (self._index_of[s] for s in special)
        self.other = len(self.ids)
        self.time0 = self.other + 1
        self.size = self.time0 + 1501
        self.n_other = t.timestamp_begin - len(self.ids)
        self.timestamp_begin = t.timestamp_begin
        self.classes = frame_classes()

    def word(self, text: str) -> int:
        """Return the index of a written word."""
        return self._index_of[token_id(text)]

    def timestamp(self, seconds: float) -> int:
        """Return the index of the nearest timestamp."""
        return self.time0 + min(1500, max(0, round(seconds * 50)))
