"""Draw a timeline of a recording: its text, and the most probable classes of sound.

python sample/draw_timeline.py [FILE] [IMAGE] [MODEL] [HEAD]
"""

import sys
import textwrap
from itertools import zip_longest
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import whisper_at as whisper

here = Path(__file__).parent
defaults = [str(here / "reading.ogg"), str(here / "timeline.png"), "tiny.en", "open.tiny.en"]
file, output, name, head = (argument or default for argument, default in zip_longest(sys.argv[1:], defaults))
model = whisper.load_model(name, head=head)

result = model.transcribe(file, beam_size=5, at_time_res=0.4)
probabilities = result["audio_tag"].sigmoid().nan_to_num()  # of classes that the head does not know: 0
classes = probabilities.topk(min(3, len(probabilities)), dim=0).values.mean(dim=0).topk(10).indices.tolist()
names = [whisper.label_names("en")[i] for i in classes]

figure, (text_axes, tag_axes) = plt.subplots(
    2, 1, figsize=(12, 4.4), sharex=True, height_ratios=[1.3, 4], layout="constrained", dpi=110
)
for i, segment in enumerate(result["segments"]):
    text_axes.axvspan(segment["start"], segment["end"], color="tab:cyan", alpha=0.35)
    text = textwrap.fill(segment["text"].strip(), 40)
    late = segment["start"] > 0.8 * result["duration"]
    place = {"x": segment["end"], "ha": "right"} if late else {"x": segment["start"], "ha": "left"}
    text_axes.text(y=0.26 + 0.48 * (i % 2), s=text, fontsize=7, va="center", **place)
text_axes.set(
    ylim=(0, 1),
    yticks=[],
    title=f"{Path(file).name}: one encoder pass, text above, sounds every 0.4 s below",
)
image = tag_axes.imshow(
    probabilities[:, classes].T,
    aspect="auto",
    vmin=0,
    vmax=1,
    cmap="magma",
    interpolation="nearest",
    extent=(0, 0.4 * len(probabilities), len(classes), 0),
)
tag_axes.set(yticks=[i + 0.5 for i in range(len(classes))], yticklabels=names, xlabel="seconds")
figure.colorbar(image, ax=tag_axes, label="probability")
figure.savefig(output)
print(output)
