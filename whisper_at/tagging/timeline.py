"""Where things lie in time: windows, the absolute grid of 0.4 s steps, and rows of tags.

Three grids meet here. A mel *frame* is 10 ms. An encoder *position* is two frames (20 ms), counted
from wherever the decoder put its window. A *step* is 40 frames (0.4 s), counted from the start of
the file, whatever the windows are; a *row* of tags is a whole number of steps.

The rule for rows (design decision 4): a row belongs to the window that covers it whole and whose
centre is nearest; where no window covers it, the steps of all windows that touch it are joined in
order. Padding is never part of a step, and a row that nothing covered is NaN with coverage 0.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_FRAMES, SAMPLE_RATE

from ..windows import Window

POSITION_FRAMES = 2  # mel frames per encoder position
STEP_FRAMES = 40  # mel frames per pooled step
STEP_POSITIONS = STEP_FRAMES // POSITION_FRAMES
STEP_SECONDS = STEP_FRAMES * HOP_LENGTH / SAMPLE_RATE  # 0.4
WINDOW_STEPS = N_FRAMES // STEP_FRAMES  # 75

Classifier = Callable[[Tensor], Tensor]
"""From pooled states ``(batch, layers, steps, dim)`` to logits ``(batch, classes)``."""


def seconds_to_steps(at_time_res: float) -> int:
    """Return the number of steps in a row of `at_time_res` seconds.

    Every multiple of 0.4 s is accepted however it was computed (``3 * 0.4`` is not ``1.2``).

    Raises
    ------
    ValueError
        If it is not a number, not positive, or not a multiple of 0.4 s.
    """
    try:
        seconds = float(at_time_res)
    except (TypeError, ValueError):
        seconds = math.nan
    if isinstance(at_time_res, bool) or not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(f"at_time_res must be a positive number of seconds, not {at_time_res!r}")
    steps = round(seconds / STEP_SECONDS)
    if steps < 1 or abs(seconds - STEP_SECONDS * steps) > max(1e-6, _precision(at_time_res)) * max(1.0, seconds):
        lower, upper = max(1, math.floor(seconds / STEP_SECONDS)), math.ceil(seconds / STEP_SECONDS)
        nearest = " or ".join(f"{steps_to_seconds(s):g}" for s in sorted({lower, upper}))
        raise ValueError(f"at_time_res must be a multiple of 0.4 s, not {at_time_res!r}; try {nearest}")
    return steps


def _precision(value: object) -> float:
    """Return the relative precision of an array's or a tensor's floating-point numbers; 0 for other things."""
    dtype = getattr(value, "dtype", None)
    if isinstance(dtype, torch.dtype):
        return torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
    return float(np.finfo(dtype).eps) if isinstance(dtype, np.dtype) and dtype.kind == "f" else 0.0


def steps_to_seconds(steps: int) -> float:
    """Return the length of `steps` steps in seconds, the float nearest to the exact decimal."""
    return steps * 4 / 10


def first_step(window: Window) -> int:
    """Return the absolute index of the step in which a window starts."""
    return window.seek // STEP_FRAMES


def row_spans(n_rows: int, steps: int, duration: float) -> list[tuple[float, float]]:
    """Return start and end, in seconds, of each row of `steps` steps in a recording of `duration` seconds."""
    return [(steps_to_seconds(i * steps), min(steps_to_seconds((i + 1) * steps), duration)) for i in range(n_rows)]


def position_mask(window: Window, n_positions: int = N_FRAMES // POSITION_FRAMES) -> Tensor:
    """Return which encoder positions count, laid out on the grid of steps: bool ``(steps * 20,)``.

    A position counts if it lies wholly inside one step and wholly inside the audio. Windows on an
    odd frame (word timing and clips put them there) have one position in twenty that lies in two steps;
    it is left out of both.
    """
    lead, n_steps = _layout(window, n_positions)
    slot = torch.arange(n_steps * STEP_POSITIONS)
    position = slot - lead
    inside = (position >= 0) & ((position + 1) * POSITION_FRAMES <= window.size)
    if window.seek % POSITION_FRAMES:
        inside &= slot % STEP_POSITIONS != STEP_POSITIONS - 1
    return inside


def _layout(window: Window, n_positions: int) -> tuple[int, int]:
    """Positions of the first step that lie before the window, and the number of steps that it touches."""
    lead = window.seek % STEP_FRAMES // POSITION_FRAMES
    return lead, -(-(lead + n_positions) // STEP_POSITIONS)


def pool_steps(x: Tensor, windows: Sequence[Window]) -> Tensor:
    """Average encoder positions into steps of the absolute grid.

    Parameters
    ----------
    x : Tensor, shape (batch, 1500, dim)
        Output of an encoder block.
    windows : sequence of Window
        Where each item lies in its recording.

    Returns
    -------
    Tensor, shape (batch, steps, dim)
        Float32: step ``i`` of item ``b`` is the step ``first_step(windows[b]) + i`` of the file. 75 steps if every
        window starts on the grid, else 76. A step without audio is NaN (defects D5, D6, D7, D10).
    """
    if len(windows) != x.shape[0]:
        raise ValueError(f"{x.shape[0]} encoder outputs but {len(windows)} windows")
    n_steps = max(_layout(window, x.shape[1])[1] for window in windows)
    out = torch.full((len(windows), n_steps, x.shape[2]), math.nan, device=x.device)
    for steps, item, window in zip(out, x, windows):
        lead, _ = _layout(window, x.shape[1])
        used = STEP_POSITIONS - window.seek % POSITION_FRAMES  # of a step's positions
        audio = item[: window.size // POSITION_FRAMES]
        first = min(STEP_POSITIONS - lead, len(audio)) if lead else 0
        n_whole = (len(audio) - first) // STEP_POSITIONS
        last = first + n_whole * STEP_POSITIONS
        if first:
            steps[0] = audio[: min(first, used - lead)].mean(0, dtype=torch.float32)
        middle = slice(bool(lead), bool(lead) + n_whole)
        parts = audio[first:last].unflatten(0, (n_whole, STEP_POSITIONS))[:, :used]
        if parts.dtype == torch.float32 and parts.device.type == "cpu":  # in half of the time that `mean` takes
            steps[middle] = (parts.new_full((1, used), 1 / used) @ parts)[:, 0]
        else:
            steps[middle] = parts.mean(1, dtype=torch.float32)
        if last < len(audio):
            steps[middle.stop] = audio[last:].mean(0, dtype=torch.float32)
    return out


class TagRows:
    """Builds the tag rows of one recording at one resolution, window by window.

    Rows are classified as soon as no later window can change them, so that memory holds the states
    of the last window or two and not of the file. Rows longer than 30 s are cut into equal cells
    of at most 30 s; their logits are the mean of the cells', weighted by the steps of each.

    Parameters
    ----------
    steps : int
        Steps per row.
    content_frames : int
        Length of the recording in mel frames.
    classify : callable
        From pooled states ``(batch, layers, steps, dim)`` to logits ``(batch, classes)``.
    n_classes : int
        Number of classes.
    """

    def __init__(self, steps: int, content_frames: int, classify: Classifier, n_classes: int) -> None:
        total = -(-content_frames // STEP_FRAMES)
        steps = min(steps, max(total, 1))  # a row that is longer than the recording is all of it
        self.row_frames = steps * STEP_FRAMES
        self.content_frames = content_frames
        self.classify = classify
        n_rows = -(-total // steps)
        self.logits = torch.full((n_rows, n_classes), math.nan)

        cells = -(-steps // WINDOW_STEPS)  # of a row
        cell = -(-steps // cells)
        row = np.repeat(np.arange(n_rows), cells)
        start = row * steps + np.tile(np.arange(cells) * cell, n_rows)
        end = np.minimum(np.minimum(start + cell, (row + 1) * steps), total)
        kept = end > start
        self._cell_row, self._cell_start, self._cell_end = row[kept], start[kept], end[kept]
        self._row_weight = torch.zeros(n_rows) if cells > 1 else None

        self._held: list[tuple[Window, Tensor, np.ndarray]] = []  # window, states, positions per step
        self._covered: list[tuple[int, int]] = []
        self._next_cell = 0

    def add_window(self, window: Window, states: Tensor) -> None:
        """Take a window's pooled states ``(layers, steps, dim)``, as `pool_steps` lays them out."""
        count = position_mask(window).view(-1, STEP_POSITIONS).sum(1).numpy()
        self._held.append((window, states, count))
        self._covered.append((window.seek, window.end))

    def flush(self, settled_before: int) -> None:
        """Classify every row that is settled if all windows still to come start at or after `settled_before`."""
        starts, ends = self._cell_frames()
        first = self._next_cell
        last = int(np.searchsorted(ends, settled_before, side="right"))  # cells that end by then are settled
        if first <= last < len(starts) and starts[last] < settled_before:
            # one that is covered whole, and that no later window can cover, is settled too
            last += any(w.seek <= starts[last] and ends[last] <= w.end for w, _, _ in self._held)
        if last <= first:
            return
        self._classify_cells(first, last)
        self._next_cell = last
        reach = starts[last] if last < len(starts) else math.inf
        self._held = [held for held in self._held if held[0].end > reach]

    @property
    def settled_rows(self) -> int:
        """Number of rows, from the first one on, that no later window can change."""
        return int(self._cell_row[self._next_cell]) if self._next_cell < len(self._cell_row) else len(self.logits)

    def settled_logits(self, first: int) -> Tensor:
        """Return the logits ``(rows, classes)`` of settled rows, from row `first` on."""
        rows = slice(first, self.settled_rows)
        return self.logits[rows] if self._row_weight is None else self.logits[rows] / self._row_weight[rows, None]

    def finish(self) -> tuple[Tensor, Tensor]:
        """Classify what is left; return logits ``(rows, classes)`` and coverage ``(rows,)`` in 0…1."""
        self.flush(np.iinfo(np.int64).max)
        if self._row_weight is not None:
            self.logits /= self._row_weight[:, None]
        coverage = self._coverage()
        coverage[self.logits.isnan().all(dim=1)] = 0.0
        return self.logits, coverage

    def _cell_frames(self) -> tuple[np.ndarray, np.ndarray]:
        starts = self._cell_start * STEP_FRAMES
        return starts, np.minimum(self._cell_end * STEP_FRAMES, self.content_frames)

    def _classify_cells(self, first: int, last: int) -> None:
        if not self._held:
            return
        starts, ends = (frames[first:last] for frames in self._cell_frames())
        seek = np.array([w.seek for w, _, _ in self._held])[:, None]
        stop = np.array([w.end for w, _, _ in self._held])[:, None]
        distance = np.abs((seek + stop) - (starts + ends)).astype(float)
        distance[(seek > starts) | (stop < ends)] = np.inf
        nearest = distance.argmin(axis=0)
        whole = np.isfinite(distance.min(axis=0))

        batches: dict[int, list[tuple[int, Tensor]]] = {}  # number of steps -> (cell, states) of that length
        for i in range(last - first):
            cell = first + i
            if whole[i]:
                window, states, count = self._held[nearest[i]]
                lo = self._cell_start[cell] - first_step(window)
                hi = self._cell_end[cell] - first_step(window)
                states, count = states[:, lo:hi], count[lo:hi]
                if not count.all():
                    states = states[:, torch.from_numpy(count > 0).to(states.device)]
            else:
                states = self._join(cell)
            if states.shape[1]:
                batches.setdefault(states.shape[1], []).append((cell, states))

        for n_steps, members in batches.items():
            logits = self.classify(torch.stack([states for _, states in members])).float().cpu()
            rows = torch.from_numpy(self._cell_row[[cell for cell, _ in members]])
            if self._row_weight is None:
                self.logits[rows] = logits
            else:
                touched = self.logits[rows].isnan().all(dim=1)
                self.logits[rows[touched]] = 0.0
                self.logits.index_add_(0, rows, logits * n_steps)
                self._row_weight.index_add_(0, rows, torch.full((len(rows),), float(n_steps)))

    def _join(self, cell: int) -> Tensor:
        """Return the steps of a cell that no window covers whole, each from the window that holds most of it.

        The shape is ``(layers, steps, dim)``. Of two windows that hold as much, the one whose centre is nearer gives
        the step.
        """
        chosen = []
        for step in range(self._cell_start[cell], self._cell_end[cell]):
            best, state = (0, -math.inf), None
            for window, states, count in self._held:
                i = step - first_step(window)
                if 0 <= i < len(count):
                    off_centre = abs((step + 0.5) * STEP_FRAMES - (window.seek + window.end) / 2)
                    if (rank := (int(count[i]), -off_centre)) > best and rank[0]:
                        best, state = rank, states[:, i]
            if state is not None:
                chosen.append(state)
        _, states, _ = self._held[0]
        return torch.stack(chosen, dim=1) if chosen else states[:, :0]

    def _coverage(self) -> Tensor:
        """Return the share of each row's frames that some window holds."""
        covered_until = [0]  # breakpoints of the merged intervals, and frames covered before each
        frames = [0]
        for start, end in sorted(self._covered):
            start, end = max(start, covered_until[-1]), min(end, self.content_frames)
            if end > start:
                covered_until += [start, end]
                frames += [frames[-1], frames[-1] + end - start]
        starts = np.arange(len(self.logits)) * self.row_frames
        ends = np.minimum(starts + self.row_frames, self.content_frames)
        covered = np.interp(ends, covered_until, frames) - np.interp(starts, covered_until, frames)
        return torch.from_numpy(covered / (ends - starts)).float() if len(starts) else torch.zeros(0)


def is_single(at_time_res: object) -> bool:
    """Return whether this is one resolution rather than several."""
    return isinstance(at_time_res, (numbers.Number, str, bytes)) or getattr(at_time_res, "ndim", None) == 0


def resolutions(at_time_res: float | Iterable[float]) -> list[int]:
    """Return the steps per row for one resolution or several, in order and without repeats.

    Raises
    ------
    ValueError
        As `seconds_to_steps`, or if there is none.
    """
    values = [at_time_res] if is_single(at_time_res) else list(at_time_res)  # type: ignore[arg-type]
    if not values:
        raise ValueError("at_time_res is an empty list; give at least one resolution in seconds, or None")
    return list(dict.fromkeys(seconds_to_steps(value) for value in values))  # type: ignore[arg-type]
