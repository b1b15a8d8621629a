"""A result → captions: cues of words and, if asked for, of sounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..tagging.rows import read_rows
from .layout import Cue, cut_text, make_cues, time_cues
from .phrases import ends_sentence
from .sounds import SOUND_SECONDS, Sound, caption_sounds, mark_sung, place_sounds, singing_spans
from .styles import CaptionStyle, parse_style
from .words import Word, result_words


def captions(
    result: Mapping[str, Any],
    style: str | CaptionStyle = "plain",
    *,
    include_classes: Iterable[int | str] | int | str | None = None,
    p_threshold: float | None = None,
    language: str | None = "follow_asr",
    sdh: bool | None = None,
) -> list[dict[str, Any]]:
    """Turn what `transcribe` returned into captions that can be read.

    Cues are broken at sentences, clauses and pauses, their lines are short and even, they stay long enough to be read
    and never overlap. With ``sdh``, sounds are shown in brackets: in cues of their own where nobody speaks, else before
    the words that they begin with; what is sung stands between ♪.

    Parameters
    ----------
    result : dict
        What `transcribe` or `tag` returned. Words are timed best with ``word_timestamps=True``; without, the time of a
        segment is shared out among its words. Sounds need tags: ``at_time_res=2``.
    style : str or CaptionStyle
        ``"plain"``, ``"netflix"`` or ``"bbc"``; ``"sdh"`` or ``"sdh,bbc"`` with sounds.
    include_classes : optional
        AudioSet's classes to show, instead of those that are worth a caption.
    p_threshold : float, optional
        The logit from which a sound is shown, instead of the head's own.
    language : str, optional
        Language of the names of sounds; by default that of the text.
    sdh : bool, optional
        Show sounds or do not, whatever the text of `style` says.

    Returns
    -------
    list of dict
        ``{"start", "end", "text"}`` in order of time: seconds, to the millisecond, and lines parted by newlines.

    Raises
    ------
    ValueError
        If there is no such style, or sounds are to be shown of a result that was not tagged.

    Examples
    --------
    >>> captions({"language": "en", "segments": [{"start": 0.0, "end": 2.5, "text": " Please open the door."}]})
    [{'start': 0.0, 'end': 3.0, 'text': 'Please open the door.'}]
    """
    named = parse_style(style) if isinstance(style, str) else (style, False)
    rules, with_sounds = named[0], named[1] if sdh is None else sdh
    spoken = "en" if result.get("task") == "translate" else result.get("language")
    words, sounds = result_words(result), list[Sound]()
    if with_sounds:
        if not read_rows(result):
            raise ValueError("captions with sounds need tags: transcribe with at_time_res=2, say")
        spans = singing_spans(result)
        words = mark_sung(words, spans, _sentence_starts(words))
        options: dict[str, Any] = {"include_classes": include_classes, "p_threshold": p_threshold, "language": language}
        sung = any(word.is_sung for word in words)
        words, sounds = place_sounds(words, caption_sounds(result, without_singing=sung, **options), rules, spoken)
    cues = make_cues(words, rules, spoken)
    for sound in _fitting(sounds, rules):
        end = min(sound.end, sound.start + SOUND_SECONDS)
        cues += [Cue(sound.start, end, text, lingers=False) for text in cut_text(sound.text, rules)]
    timed = time_cues(sorted(cues, key=lambda cue: cue.start), rules)
    return [{"start": cue.start, "end": cue.end, "text": cue.text} for cue in timed]


def _sentence_starts(words: Sequence[Word]) -> list[int]:
    """Return the indices of the words that follow the end of a sentence."""
    return [i + 1 for i, word in enumerate(words[:-1]) if ends_sentence(word.text)]


def _fitting(sounds: Sequence[Sound], style: CaptionStyle) -> list[Sound]:
    """Sounds with cues of their own, those that follow too soon for that shown with the one before."""
    fitting: list[Sound] = []
    for sound in sounds:
        previous = fitting[-1] if fitting else Sound(-math.inf, -math.inf, "")
        if sound.start - previous.start < style.min_seconds + style.min_gap:
            text = f"{previous.text[:-1]}, {sound.text[1:]}"
            fitting[-1] = Sound(previous.start, max(previous.end, sound.end), text)
        else:
            fitting.append(sound)
    return fitting
