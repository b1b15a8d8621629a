"""What players show: lines of lyrics (LRC), Advanced SubStation Alpha (ASS), and JSON cues of WebVTT for scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..captioning import captions as make_captions
from ..tagging.named_rows import result_events, tag_rows
from ..tagging.rows import TagOptions, read_rows
from .options import FormatOptions
from .spans import clock, one_line

ASS_HEADER = """\
[Script Info]
ScriptType: v4.00+
PlayResX: 1920
PlayResY: 1080
WrapStyle: 2
ScaledBorderAndShadow: yes

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, \
StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,64,&H00FFFFFF,&H00FFFFFF,&H00000000,&H80000000,0,0,0,0,100,100,0,0,1,3,1,2,90,90,60,1

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""
ASS_TEXT = str.maketrans({"{": "\uff5b", "}": "\uff5d", "\\": "\uff3c"})
"""Characters of the format itself as their look-alikes: players differ in how they may be escaped."""
LRC_TEXT = str.maketrans("[]", "()")
"""Square brackets are the format's own, around times."""


def result_cues(result: Mapping[str, Any], style: str, options: TagOptions) -> list[dict[str, Any]]:
    """Return captions of a result; with sounds, if the style says so, where something is known of sounds."""
    return make_captions(
        result,
        style,
        sdh=None if read_rows(result) else False,
        include_classes=options.include_classes,
        p_threshold=options.p_threshold,
        language=options.label_language,
    )


def caption_style(result: Mapping[str, Any], captions: str | None) -> str | None:
    """Return the style of captions: what was tagged without its text has its sounds shown, whatever is asked for."""
    if result.get("task") == "tag" and read_rows(result):
        return f"{captions},sdh" if captions else "sdh"
    return captions


def lrc(result: Mapping[str, Any], filename: str, options: FormatOptions) -> str:
    """Return captions as lines with their starts; an empty line ends one that the next does not follow at once."""
    cues = result_cues(result, caption_style(result, options.captions) or "plain", options.tags)
    cues = [cue for cue in cues if one_line(cue["text"])]
    lines = []
    for i, cue in enumerate(cues):
        text = one_line(cue["text"]).translate(LRC_TEXT)
        lines.append(f"[{clock(cue['start'], hours=False)}]{text}\n")
        if i + 1 == len(cues) or cues[i + 1]["start"] - cue["end"] > 0.5:
            lines.append(f"[{clock(cue['end'], hours=False)}]\n")
    return "".join(lines)


def ass(result: Mapping[str, Any], filename: str, options: FormatOptions) -> str:
    """Return captions as dialogue lines, whose times the format counts in hundredths of a second."""
    lines = []
    for cue in result_cues(result, caption_style(result, options.captions) or "plain", options.tags):
        text = r"\N".join(one_line(line).translate(ASS_TEXT) for line in cue["text"].split("\n"))
        start, end = (clock(cue[name], decimals=2).removeprefix("0") for name in ("start", "end"))
        lines.append(f"Dialogue: 0,{start},{end},Default,,0,0,0,,{text}\n")
    return ASS_HEADER + "".join(lines)


def metadata_vtt(result: Mapping[str, Any], filename: str, options: FormatOptions) -> str:
    """Return events and rows of tags as cues of JSON, for ``<track kind="metadata">`` of a web page."""
    values = [(event["start"], event["end"], {"event": event}) for event in result_events(result, options.tags)]
    for head in read_rows(result):
        rows = tag_rows(result, options.tags, head)
        for row in (row for part in (rows.values() if isinstance(rows, dict) else [rows]) for row in part):
            if row["tags"]:
                values.append((row["start"], row["end"], {"row": {"head": head, **row}}))
    cues = [
        f"{clock(start)} --> {clock(end)}\n{_cue_json(value)}\n"
        for start, end, value in sorted(values, key=lambda item: item[:2])
        if end > start
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _cue_json(value: Any) -> str:
    """Return a value as JSON without what has a meaning in WebVTT."""
    text = json.dumps(value, ensure_ascii=False)
    for character in "<>&\u2028\u2029\x85":  # readers disagree on whether the last three end lines
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
