"""Draw the picture of captions in docs/images: a video of the sample with its captions, and four frames of it.

Run it where tiny.en is: ``python docs/scripts/captioned_video.py``. The captions are those of ``--captions sdh``;
ffmpeg's libass, which mpv and VLC use too, draws them. The landscape is drawn here.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from whisper_at.audio import ffmpeg_binary
from whisper_at.cli import main

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "docs" / "images" / "captions.jpg"
WIDTH, HEIGHT = 640, 360
TIMES = (4.0, 7.5, 21.0, 30.5)
"""Seconds of the frames."""


def draw_landscape(path: Path) -> None:
    """Draw hills at dusk, with a sun and some birds."""
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(0, HEIGHT)
    sky = np.linspace((0.98, 0.75, 0.45), (0.20, 0.28, 0.50), HEIGHT)[:, None]
    axes.imshow(sky, extent=(0, WIDTH, 0, HEIGHT), origin="lower", aspect="auto")
    axes.scatter([455], [170], s=2600, color="#ffe9a8", linewidths=0)
    x = np.linspace(0, WIDTH, 400)
    for base, height, length, colour in ((150, 34, 95, "#6d6a8d"), (105, 26, 70, "#4c5673"), (60, 20, 55, "#2c3a4a")):
        axes.fill_between(x, base + height * np.sin(x / length + base) + 6 * np.sin(x / 17 + base), color=colour)
    for left, bottom, size in ((120, 270, 9), (150, 284, 7), (185, 262, 8), (215, 278, 6)):
        for side in (-1, 1):
            wing = np.linspace(0, 1, 20)
            axes.plot(
                left + side * size * wing, bottom + 0.6 * size * np.sin(np.pi * wing**0.7), color="#1d2433", lw=1.5
            )
    figure.savefig(path)


def ffmpeg(folder: Path, *arguments: str) -> None:
    """Run ffmpeg in a folder."""
    subprocess.run([ffmpeg_binary(), "-nostdin", "-v", "error", "-y", *arguments], cwd=folder, check=True)


def make_video(folder: Path) -> Path:
    """Write a video of the landscape, with the sample's sound and captions, and return its path."""
    sample = ROOT / "sample" / "reading.ogg"
    options = ["--model", "tiny.en", "--head", "open.tiny.en", "--captions", "sdh", "-f", "ass,srt"]
    if main([str(sample), *options, "-o", str(folder)]):
        raise RuntimeError("the sample could not be captioned")
    draw_landscape(folder / "landscape.png")
    picture = ["-loop", "1", "-framerate", "10", "-i", "landscape.png", "-i", str(sample)]
    ffmpeg(folder, *picture, "-vf", "ass=reading.ass", "-c:a", "aac", "-pix_fmt", "yuv420p", "-shortest", "video.mp4")
    return folder / "video.mp4"


def draw_frames(video: Path) -> None:
    """Write the frames of `TIMES`, two by two."""
    frames = []
    for i, seconds in enumerate(TIMES):
        ffmpeg(video.parent, "-ss", str(seconds), "-i", video.name, "-frames:v", "1", f"frame-{i}.png")
        frames += ["-i", f"frame-{i}.png"]
    grid = "[0][1]hstack[top];[2][3]hstack[bottom];[top][bottom]vstack"
    ffmpeg(video.parent, *frames, "-filter_complex", grid, "-q:v", "6", str(IMAGE))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        draw_frames(make_video(Path(temporary)))
    print(f"{IMAGE}: {IMAGE.stat().st_size / 1000:.0f} kB")
