"""Steps, rows and windows: closed formulas, and a brute-force reading of the rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_at.tagging.timeline import (
    TagRows,
    first_step,
    is_single,
    pool_steps,
    position_mask,
    resolutions,
    seconds_to_steps,
    steps_to_seconds,
)
from whisper_at.windows import Window


@given(st.integers(1, 100_000))
def test_every_multiple_of_a_step_is_accepted_in_any_float_form(n):
    """D3: 43 of the first 150 multiples failed a float modulo."""
    for form in (n * 0.4, n * 4 / 10, n / 2.5, np.float32(n * 0.4), sum([0.4] * (n % 500)) + (n - n % 500) * 0.4):
        assert seconds_to_steps(form) == n


@pytest.mark.parametrize("seconds", [0.4, 1.2, 2, 4.4, 10])
def test_half_precision_and_bytes(seconds):
    """D3: what is nearest to a multiple in the precision given is that multiple."""
    forms = [np.float16(seconds), torch.tensor(seconds).half(), torch.tensor(seconds).bfloat16(), str(seconds).encode()]
    assert [resolutions(form) for form in forms] == [[round(seconds * 10 / 4)]] * 4
    for wrong in (np.float16(0.5), torch.tensor(1.0, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="multiple of 0.4"):
            seconds_to_steps(wrong)


@pytest.mark.parametrize("seconds", [1e10, 4e299])
def test_rows_far_longer_than_the_recording(seconds):
    """Cost no more than one of its own length, and are one."""
    found = []
    for steps in (seconds_to_steps(seconds), 10):
        rows = TagRows(steps, 400, lambda states: states.mean((1, 2)), 3)
        rows.add_window(Window(0, 400), torch.arange(2 * 76 * 3).float().view(2, 76, 3))
        found.append(rows.finish())
    assert found[0][0].shape == (1, 3)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(*(f[1] for f in found))


@pytest.mark.parametrize("text", ["4.4", "8.8", "9.2", "16.4", "17.6", "18.4", "19.6", "20.4"])
def test_literals_that_failed(text):
    """D3: even literals were refused."""
    assert steps_to_seconds(seconds_to_steps(float(text))) == float(text)


@pytest.mark.parametrize("bad", [0, -1, -10, 0.5, 0.1, 10.1, math.nan, math.inf, "ten", True, [0.4], None])
def test_impossible_resolutions_are_refused_at_once(bad):
    """D4: zero, negative and odd values crashed late, or not at all under ``python -O``."""
    with pytest.raises(ValueError, match="at_time_res"):
        seconds_to_steps(bad)


def test_the_refusal_offers_what_would_do():
    with pytest.raises(ValueError, match="try 0.4 or 0.8"):
        seconds_to_steps(0.5)


def test_one_resolution_or_several():
    assert resolutions(10) == resolutions(np.float64(10)) == resolutions(torch.tensor(10.0)) == [25]
    assert resolutions((10, 0.4, 10.0)) == [25, 1]
    assert resolutions(x for x in [2]) == [5]
    assert is_single(np.int64(2))
    assert is_single(torch.tensor(2))
    assert not is_single([2])
    assert not is_single({2})
    with pytest.raises(ValueError, match="empty"):
        resolutions([])


def clock(window: Window) -> torch.Tensor:
    """Encoder output ``(1500, 2)`` that tells the time: first frame of each position, and 1; padding is huge."""
    start = window.seek + 2 * torch.arange(1500.0)
    x = torch.stack([start, torch.ones(1500)], dim=1)
    x[start + 2 > window.end] = 1e12
    return x


@given(st.integers(0, 10_000), st.integers(1, 3000))
def test_steps_hold_only_their_own_audio(seek, size):
    """D5, D6, D7: no padding in a step, and steps lie on the absolute grid whatever the window's start."""
    window = Window(seek, size)
    steps = pool_steps(clock(window)[None], [window])[0]
    assert steps.shape[0] == 75 + (seek % 40 > 1)
    for i, (time, one) in enumerate(steps.tolist()):
        begin = (first_step(window) + i) * 40
        mine = [f for f in range(seek, seek + size, 2) if begin <= f and f + 2 <= min(begin + 40, seek + size)]
        if mine:
            assert time == pytest.approx(np.mean(mine), rel=1e-6)
            assert one == pytest.approx(1)
        else:
            assert math.isnan(time)


def test_on_the_grid_pooling_is_the_published_average_pool():
    x = torch.randn(3, 1500, 8)
    reference = torch.nn.functional.avg_pool2d(x, (20, 1), (20, 1))
    torch.testing.assert_close(pool_steps(x, [Window(0), Window(40), Window(3000)]), reference)


def test_pooling_keeps_the_batch():
    """D10: only the first item of a batch was kept."""
    x = torch.randn(4, 1500, 8)
    windows = [Window(0), Window(1234), Window(40, 500), Window(7)]
    together = pool_steps(x, windows)
    assert together.shape[:2] == (4, 76)
    for i, window in enumerate(windows):
        alone = pool_steps(x[i : i + 1], [window])[0]
        torch.testing.assert_close(together[i, : len(alone)], alone, equal_nan=True)
    with pytest.raises(ValueError, match="windows"):
        pool_steps(x, windows[:2])


def echo(states: torch.Tensor) -> torch.Tensor:
    """A head that reports the first, mean and last time of its steps, and their number."""
    time = states[:, 0, :, 0]
    return torch.stack([time[:, 0], time.mean(1), time[:, -1], torch.full_like(time[:, 0], time.shape[1])], dim=1)


def build(windows: list[Window], steps: int, content: int, classify=echo, eager: bool = True):
    rows = TagRows(steps, content, classify, 4)
    for window in windows:
        if eager:
            rows.flush(settled_before=window.seek)
        rows.add_window(window, pool_steps(clock(window)[None], [window])[:1])
    return rows.finish()


def brute_force(windows: list[Window], start: int, end: int, content: int) -> list[float]:
    """Step times of one cell (in steps) by a direct reading of the rule."""
    lo, hi = start * 40, min(end * 40, content)

    def off_centre(window, a, b):
        return abs((window.seek + window.end) / 2 - (a + b) / 2)

    whole = [w for w in windows if w.seek <= lo and hi <= w.end]
    if whole:
        best = min(whole, key=lambda w: off_centre(w, lo, hi))
        chosen = [(s, best) for s in range(start, -(-hi // 40))]
    else:
        chosen = []
        for s in range(start, -(-hi // 40)):
            heard = [(int(count(w, s)), -off_centre(w, s * 40, s * 40 + 40)) for w in windows]
            if heard and max(heard)[0]:
                chosen.append((s, windows[heard.index(max(heard))]))
    times = [float(pool_steps(clock(w)[None], [w])[0, s - first_step(w), 0]) for s, w in chosen]
    return [t for t in times if not math.isnan(t)]


def count(window: Window, step: int) -> int:
    per_step = position_mask(window).view(-1, 20).sum(1)
    i = step - first_step(window)
    return int(per_step[i]) if 0 <= i < len(per_step) else 0


@st.composite
def listening(draw):
    """Windows as a decoder might place them: forward, with overlaps, gaps and cut ends."""
    content = draw(st.integers(1, 12_000))
    windows, seek = [], draw(st.integers(0, min(500, content - 1)))
    while seek < content and len(windows) < 12:
        size = min(3000, content - seek) if draw(st.booleans()) else draw(st.integers(1, min(3000, content - seek)))
        windows.append(Window(seek, size))
        seek += draw(st.integers(1, size)) if draw(st.booleans()) else size + draw(st.integers(0, 400))
    return content, windows


@settings(max_examples=150, deadline=None)
@given(listening(), st.sampled_from([1, 3, 5, 11, 25, 30, 75]))
def test_rows_follow_the_rule(listened, steps):
    """D1, D2, D7: every row is made of its own audio, from the right window, or is NaN with coverage 0."""
    content, windows = listened
    logits, coverage = build(windows, steps, content)
    late, late_coverage = build(windows, steps, content, eager=False)
    torch.testing.assert_close(logits, late, equal_nan=True)
    torch.testing.assert_close(coverage, late_coverage)
    assert len(logits) == math.ceil(content / (steps * 40))
    heard = np.zeros(content, bool)
    for w in windows:
        heard[w.seek : w.end] = True
    for row, (first, mean, last, n) in enumerate(logits.tolist()):
        start = row * steps
        lo, hi = start * 40, min((start + steps) * 40, content)
        times = brute_force(windows, start, start + steps, content)
        if not times:
            assert math.isnan(mean)
            assert coverage[row] == 0
            continue
        assert (first, last, n) == pytest.approx((times[0], times[-1], len(times)), rel=1e-6)
        assert mean == pytest.approx(np.mean(times), rel=1e-5)
        assert lo <= min(times)
        assert max(times) < hi
        assert coverage[row] == pytest.approx(heard[lo:hi].mean(), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(listening(), st.sampled_from([76, 100, 150, 226, 400]))
def test_rows_over_30_s_are_the_mean_of_their_pieces(listened, steps):
    """D4: rows longer than a window crashed or used only their first 30 s."""
    content, windows = listened
    logits, coverage = build(windows, steps, content)
    pieces = math.ceil(steps / 75)
    piece = math.ceil(steps / pieces)
    total = math.ceil(content / 40)
    for row in range(len(logits)):
        sums = np.zeros(2)
        for p in range(pieces):
            start = row * steps + p * piece
            end = min(start + piece, (row + 1) * steps, total)
            times = brute_force(windows, start, end, content) if end > start else []
            if times:
                sums += len(times) * np.array([np.mean(times), 1])
        if sums[1]:
            assert logits[row, 1] == pytest.approx(sums[0] / sums[1], rel=1e-4)
        else:
            assert logits[row].isnan().all()
            assert coverage[row] == 0


def test_scripted_seeks_keep_every_row_in_place():
    """D1: with windows at 0, 25, 53 and 79 s, rows held audio up to 17 s away."""
    windows = [Window(0), Window(2500), Window(5300), Window(7900, 2100)]
    logits, coverage = build(windows, 25, 10_000)
    centres = (torch.arange(10) * 1000 + 499).float()
    torch.testing.assert_close(logits[:, 1], centres, atol=1e-2, rtol=0)
    assert coverage.tolist() == [1.0] * 10


def test_a_skipped_row_is_empty_and_not_a_detection():
    """D2: 4 s rows with windows at 0, 27.6 and 57.6 s left row 13 at logit 0.0, above the threshold."""
    windows = [Window(0), Window(2760), Window(5760)]
    logits, coverage = build(windows, 10, 8760)
    assert not logits.isnan().any()
    logits, coverage = build(windows[:1] + windows[2:], 10, 8760)
    assert logits[8:14].isnan().all()
    assert coverage[8:14].tolist() == [0.0] * 6
    assert coverage[7] == pytest.approx(0.5)
    assert coverage[14] == pytest.approx(0.6)


def test_the_last_row_holds_no_padding():
    """D6: 90.05 s gave a tenth row of 0.05 s of audio and 9.95 s of padding."""
    windows = [Window(0), Window(3000), Window(6000), Window(9000, 5)]
    logits, coverage = build(windows, 25, 9005)
    first, _, last, n = logits[9].tolist()
    assert (first, last, n) == (9001, 9001, 1)
    assert coverage[9] == 1


def test_states_of_settled_rows_are_let_go():
    """D14: memory for tags must not grow with the file."""
    rows = TagRows(25, 10**6, echo, 4)
    for i in range(50):
        window = Window(i * 2750)
        rows.flush(settled_before=window.seek)
        rows.add_window(window, pool_steps(clock(window)[None], [window])[:1])
        assert len(rows._held) <= 2


def test_clips_in_any_order():
    windows = [Window(6000), Window(0), Window(3000)]
    rows = TagRows(25, 9000, echo, 4)
    for window, later in zip(windows, [0, 0, 3000]):
        rows.flush(settled_before=min(window.seek, later))
        rows.add_window(window, pool_steps(clock(window)[None], [window])[:1])
    logits, coverage = rows.finish()
    torch.testing.assert_close(logits[:, 1], (torch.arange(9) * 1000 + 499).float(), atol=1e-2, rtol=0)
    assert coverage.min() == 1


def test_nothing_to_listen_to():
    logits, coverage = build([], 25, 0)
    assert logits.shape == (0, 4)
    assert coverage.shape == (0,)
