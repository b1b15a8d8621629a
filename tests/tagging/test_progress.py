"""What is reported while a recording is heard: final from the start, in order of time, and nothing twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import noise

from whisper_at.cli.timeline import Timeline, timeline_lines
from whisper_at.tagging.classes import ClassSet
from whisper_at.tagging.heads import make_head
from whisper_at.tagging.progress import Progress
from whisper_at.tagging.rows import TagOptions, read_rows

OPTIONS = {"temperature": 0, "fp16": False, "logprob_threshold": None, "sample_len": 12, "at_time_res": [0.4, 10, 40]}


@pytest.fixture
def model(model_en):
    """A model with two heads, whose texts are of several windows."""
    own = make_head("tl_tr_1_8", n_layer=2, rep_dim=64, label_dim=2)
    own.classes = ClassSet(("wren", "owl"), temperature=2.0)
    model_en.attach("own", own)
    return model_en


@pytest.mark.parametrize("task", ["transcribe", "tag"])
@pytest.mark.parametrize("clips", ["0", "5,50,61,80"])
def test_what_is_reported_is_final_and_in_order_of_time(model, task, clips):
    """Every row as it is in the result, and the timeline of the parts is that of the whole."""
    reports: list[Progress] = []
    timeline, lines, before_last = Timeline(TagOptions(3, -99)), [], 0

    def on_progress(progress: Progress) -> None:
        nonlocal before_last
        reports.append(progress)
        timeline.add(progress.segments, progress.rows, {"language": progress.language, "task": progress.task})
        lines.extend(timeline.lines(progress.settled_before))
        before_last = len(lines)

    hear = model.tag if task == "tag" else model.transcribe
    options = {**OPTIONS, "on_progress": on_progress, "clip_timestamps": clips}
    if task == "tag":
        options = {name: options[name] for name in ("at_time_res", "on_progress", "clip_timestamps")}
    result = hear(noise(90), **options)
    timeline.add_rest(result)
    lines.extend(timeline.lines())

    assert len(reports) >= 2
    assert [report.task for report in reports] == [task] * len(reports)
    assert all(report.duration == pytest.approx(90) for report in reports)
    assert sorted(report.seconds for report in reports) == [report.seconds for report in reports]
    segments = [segment for report in reports for segment in report.segments]
    assert segments == result["segments"][: len(segments)]
    final = read_rows(result)
    for name, rows in final.items():
        for seconds, logits in rows.logits.items():
            parts = [report.rows[name].logits[seconds] for report in reports]
            found = np.concatenate(parts)
            assert len(found) > 0 or seconds == 40
            torch.testing.assert_close(found, logits[: len(found)], rtol=0, atol=0, equal_nan=True)
            times = [time for report in reports for time in report.rows[name].times(seconds)]
            assert times == rows.times(seconds)[: len(times)]
    assert lines == list(timeline_lines(result, TagOptions(3, -99)))
    assert 0 < before_last < len(lines)


def test_batches_have_no_order_to_report(model):
    with pytest.raises(ValueError, match="on_progress needs one window after the other"):
        model.transcribe(noise(2), batch_size=2, on_progress=print)
