"""What is published, by name, and what the manual says of it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import whisper

from whisper_at.checkpoints import (
    HEADS,
    PublishedHead,
    alignment_heads,
    available_heads,
    available_models,
    head_name,
    head_shapes,
    shapes,
)
from whisper_at.checkpoints.hub import is_hub_id

ROOT = Path(__file__).parents[2]


def test_models_are_upstreams_and_ours():
    assert available_models() == [*whisper.available_models(), "nano.en"]
    assert available_models()[-5:-1] == ["large-v3", "large", "large-v3-turbo", "turbo"]
    assert whisper._MODELS["large"] == whisper._MODELS["large-v3"]  # not large-v2, as it was in Whisper-AT
    for name in whisper._MODELS:
        assert alignment_heads(name) == whisper._ALIGNMENT_HEADS[name]
    assert alignment_heads("nano.en") is alignment_heads("my.pt") is None


def test_the_table_of_heads():
    whispers = "tiny.en tiny base.en base small.en small medium.en medium large-v1 large-v2".split()
    assert [name for name in HEADS if not HEADS[name].low_compute] == whispers
    assert [name for name in HEADS if HEADS[name].low_compute] == [f"{name}_low" for name in whispers[4:]]
    assert available_heads() == [*HEADS, "open.tiny.en", "open.base", "nano.en"]
    assert HEADS["small"] == PublishedHead(
        "small_ori.pth",
        768,
        False,
        (
            "https://www.dropbox.com/s/jftj9s0kr4ycvr1/small_ori.pth?dl=1",
            "https://www.dropbox.com/s/5zqzs3e47zwhjd3/small_ori.pth?dl=1",
        ),
    )
    with_mirror = {name for name, head in HEADS.items() if len(head.urls) == 2}
    differing = "tiny base small small_low medium medium_low large-v2 large-v2_low"
    assert with_mirror == set(differing.split())
    links = [url.split("/")[4] for head in HEADS.values() for url in head.urls]
    assert len(links) == len(set(links)) == 24
    assert {len(link) for link in links} == {15}


def test_head_names():
    assert [head_name(name) for name in ("tiny", "large-v2", "nano.en")] == ["tiny", "large-v2", "nano.en"]
    assert head_name("small.en", low_compute=True) == "small.en_low"
    for name in ("large", "large-v3", "turbo", "large-v3-turbo", "my/own.pt"):  # no head was made for these
        assert head_name(name) is head_name(name, low_compute=True) is None


# --- the manual ---


def table(start: str) -> list[list[str]]:
    """Rows of the table of pretrained_models/README.md whose first heading is `start`."""
    lines = iter((ROOT / "pretrained_models" / "README.md").read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith(f"| {start} |"):
            break
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split(" | ")])
    return rows


def link(cell: str) -> str:
    match = re.search(r"\]\((.*)\)", cell)
    return match.group(1) if match else ""


def test_the_manual_lists_every_whisper():
    rows = table("model")
    assert {name: link(url) for name, url, *_ in rows} == whisper._MODELS
    sizes = {"tiny": "39", "base": "74", "small": "244", "medium": "769", "large": "1550", "turbo": "809"}
    for name, _, millions, digest in rows:
        assert digest == whisper._MODELS[name].split("/")[-2]
        assert millions == sizes["turbo" if "turbo" in name else re.split(r"[.-]", name)[0]]


def test_the_manual_lists_every_head():
    rows = table("head")
    assert [row[0] for row in rows] == list(HEADS)
    for name, url, mirror, n_bytes, n_parameters, score in rows:
        head = HEADS[name]
        total = sum(math.prod(shape) for shape in head_shapes(head.width, head.low_compute).values())
        assert url.startswith(f"[{head.file}]")
        assert tuple(filter(None, (link(url), link(mirror)))) == head.urls
        assert int(n_parameters.replace(" ", "")) == total
        assert int(n_bytes.replace(" ", "")) == 4 * total
        assert 35 < float(score) < 43


def test_the_manual_describes_folders_and_hub_ids():
    text = (Path(__file__).parents[2] / "pretrained_models" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r'load_model\("([^"]*/[^"]*)"', text)
    ids = [name for name in named if is_hub_id(name)]
    assert ids == ["distil-whisper/distil-medium.en", "Systran/faster-whisper-small"]
    assert re.search(r"It must be Whisper's: (\d+), (\d+) or (\d+) tokens", text).groups() == tuple(
        str(n) for n in shapes.VOCABULARY_SIZES
    )
    for word in ("whisper-at convert SOURCE TARGET.safetensors", "`huggingface_hub`", "`encoder_sha256`"):
        assert word in text
