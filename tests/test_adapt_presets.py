"""Every preset of the papers is read, describes what can be built, and trains as many parameters as they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from whisper_at.adapt.compare import read_comparison
from whisper_at.adapt.config import build, read_config
from whisper_at.adapt.pretrained import RELEASED

RECIPES = Path(__file__).parents[1] / "recipes"
PAPERS = ("petl_ast", "peft_ser", "whispar")
FILES = sorted(path for paper in PAPERS for path in (RECIPES / paper).rglob("*.toml"))
LAYER_WEIGHTS = {"tiny": 4, "base": 6, "small": 12, "wavlm-base-plus": 12}


def trainable(path: str, classes: int, *changes: str) -> int:
    config = read_config(RECIPES / path, changes)
    return build(config, [str(i) for i in range(classes)], count_only=True).count()["trainable"]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(RECIPES)) for path in FILES])
def test_presets_can_be_read(path):
    config = read_config(path)
    assert path.parent.name == "data" or (config.recipe.epochs >= 30 and config.seeds)


def test_no_preset_is_missing():
    names = {path.stem for path in FILES if path.parent.name == "petl_ast"}
    assert names == set(
        "linear full bitfit lora bottleneck_adapter conformer_adapter shallow_prompt deep_prompt prefix".split()
        + ["dense_moa", "soft_moa"]
    )
    ser = {path.stem for path in FILES if path.parent.name == "peft_ser"}
    assert ser == RELEASED.keys() | set("finetune adapter adapter_l embedding_prompt lora combined".split())


@pytest.mark.parametrize("path", sorted((RECIPES / "petl_ast").glob("*.toml")), ids=lambda path: path.stem)
def test_counts_of_petl_ast(path):
    config = read_config(path)
    found = trainable(f"petl_ast/{path.name}", 31, "frames=400")
    assert found == config.reported["trainable_31_classes_400_frames"]


def test_variants_of_petl_ast():
    """Spec section 1.3: layouts and widths that a change of one setting gives."""
    lora = 'method=[{name="lora",sites=%s,rank=12,alpha=1.5},{name="layer_norm",sites=["final"]}]'
    assert trainable("petl_ast/lora.toml", 31, lora % '["q"]') == 246_559
    assert trainable("petl_ast/lora.toml", 31, lora % '["q","k","v","o"]') == 910_111
    both = 'method=[{name="adapter",block="%s",dim=%d,layout="houlsby"},{name="layer_norm"}]'
    assert trainable("petl_ast/bottleneck_adapter.toml", 31, both % ("bottleneck", 12)) == 523_327
    assert trainable("petl_ast/conformer_adapter.toml", 31, both % ("conformer", 8)) == 566_815


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("linear", 3_076),
        ("full", 21_266_692),
        ("bottleneck_adapter", 160_612 - 768),
        ("conformer_adapter", 256_132 - 768),
    ],
)
def test_counts_of_wav2vec2(name, wanted):
    """The reference's counts of adapters include 768 of a vector that nothing uses."""
    assert trainable(f"petl_ast/wav2vec2/{name}.toml", 4) == wanted


@pytest.mark.parametrize(
    ("preset", "backbone", "inside"),
    [
        ("finetune", "tiny", 0),
        ("adapter", "tiny", 395_264),
        ("adapter_l", "base", 790_272),
        ("embedding_prompt", "small", 46_080),
        ("lora", "base", 491_520),
        ("lora", "wavlm-base-plus", 1_474_560),
        ("combined", "tiny", 395_264 + 4 * 384 + 491_520),
    ],
)
def test_counts_of_peft_ser(preset, backbone, inside):
    head = {"tiny": 296_964, "base": 329_732, "small": 395_268, "wavlm-base-plus": 395_268}[backbone]
    wanted = inside + head + LAYER_WEIGHTS[backbone]
    assert trainable(f"peft_ser/{preset}.toml", 4, f"backbone={backbone}") == wanted


def test_released_presets_match_what_is_loaded():
    for name, released in RELEASED.items():
        config = read_config(RECIPES / "peft_ser" / f"{name}.toml")
        assert (config.backbone, config.normalize, config.seconds) == (released.backbone, released.normalize, 10.0)
        assert config.layers == "weighted_conv" and config.method[0]["rank"] == 16


@pytest.mark.parametrize(("classes", "task"), [(6, "cog"), (7, "emotions"), (152, "birdclef2022")])
def test_counts_of_whispar(classes, task):
    config = read_config(RECIPES / "whispar" / "whispar.toml")
    assert trainable("whispar/whispar.toml", classes) == config.reported["trainable"][task]


def test_method_and_data_are_put_together():
    config = read_config([str(RECIPES / "petl_ast" / name) for name in ("lora.toml", "data/esc50.toml")])
    assert (config.frames, config.recipe.lr, config.recipe.spec_augment) == (500, 5e-3, (24, 80))
    assert config.method[0]["name"] == "lora" and config.protocol == "folds"


def test_the_comparison_can_be_read():
    cells = read_comparison(str(RECIPES / "adapt" / "compare_nano.toml"))
    assert len({cell.dataset for cell in cells}) == 3 and len({cell.method for cell in cells}) >= 10
    assert all(len(cell.config.seeds) >= 2 and cell.config.backbone == "nano.en" for cell in cells)
    for cell in cells[: len({cell.method for cell in cells})]:
        assert build(cell.config, ["a", "b"], count_only=True).count()["trainable"] > 0
