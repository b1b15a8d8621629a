"""Which words of a hypothesis about sound that goes on are final: two policies.

Both are given what the decoder makes of the sound so far, after the words that are final already, and say how many of
those words will not change.
"""

from __future__ import annotations

from collections.abc import Sequence

from .hypothesis import TimedWord

POLICIES = ("align_att", "local_agreement")


def num_agreed(previous: Sequence[TimedWord], words: Sequence[TimedWord]) -> int:
    """Return how many words two hypotheses, one after the other, begin with alike (LocalAgreement-2).

    Case and punctuation do not count. Liu, Spanakis and Niehues, "Low-latency sequence-to-sequence speech recognition
    and translation by partial hypothesis selection", Interspeech 2020; Macháček, Dabre and Bojar, "Turning Whisper into
    real-time transcription system", 2023.
    """
    count = 0
    for before, now in zip(previous, words):
        if before.letters != now.letters:
            break
        count += 1
    return count


def num_attended(words: Sequence[TimedWord], limit: float, last_limit: float) -> int:
    """Return how many words come before the first one that attends to sound later than `limit` seconds (AlignAtt).

    A word whose tokens look at the last moments may be cut off there; and the last word, which no other has followed
    yet, may be the beginning of a longer one: it has an earlier limit. Papi, Turchi and Negri, "AlignAtt: using
    attention-based audio-translation alignments as a guide for simultaneous speech translation", Interspeech 2023.
    """
    count = 0
    for i, word in enumerate(words):
        if word.attends_until > (limit if i < len(words) - 1 else last_limit):
            break
        count += 1
    return count
