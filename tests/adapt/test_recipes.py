"""Every preset of the papers is read, describes what can be built, and trains as many parameters as they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from whisper_at.adapt.compare import read_comparison
from whisper_at.adapt.config import Config, build_classifier, read_config
from whisper_at.adapt.pretrained import RELEASED_MODELS
from whisper_at.cli import adapt

RECIPES = Path(__file__).parents[2] / "recipes"
PAPERS = ("petl_ast", "peft_ser", "whispar")
FILES = sorted(path for paper in PAPERS for path in (RECIPES / paper).rglob("*.toml"))
LAYER_WEIGHTS = {"tiny": 4, "base": 6, "small": 12, "wavlm-base-plus": 12}


def trainable(path: str, classes: int, *changes: str) -> int:
    config = read_config(RECIPES / path, changes)
    return build_classifier(config, [str(i) for i in range(classes)], without_weights=True).count()["trainable"]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(RECIPES)) for path in FILES])
def test_presets_can_be_read(path):
    config = read_config(path)
    assert path.parent.name in ("data", "variants") or (config.recipe.epochs >= 30 and config.seeds)


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(RECIPES)) for path in FILES])
def test_presets_of_papers_run_the_published_epochs(path):
    config = read_config(path)
    if path.parent.name in ("data", "variants"):  # they follow a method's file
        assert "patience" not in path.read_text()
    else:
        assert config.recipe.patience is None
        assert config.recipe.select in ("accuracy", "UAR")


def test_no_preset_is_missing():
    names = {path.stem for path in FILES if path.parent.name == "petl_ast"}
    assert names == set(
        [
            *"linear full bitfit lora bottleneck_adapter conformer_adapter shallow_prompt deep_prompt prefix".split(),
            "dense_moa",
            "soft_moa",
        ]
    )
    ser = {path.stem for path in FILES if path.parent.name == "peft_ser"}
    assert ser == RELEASED_MODELS.keys() | set("finetune adapter adapter_l embedding_prompt lora combined".split())


@pytest.mark.parametrize("path", sorted((RECIPES / "petl_ast").glob("*.toml")), ids=lambda path: path.stem)
def test_counts_of_petl_ast(path):
    config = read_config(path)
    found = trainable(f"petl_ast/{path.name}", 31, "frames=400")
    assert found == config.reported["trainable_31_classes_400_frames"]


@pytest.mark.parametrize(
    ("path", "settings", "wanted"),
    [
        ("petl_ast/lora.toml", ["classes=31", "frames=400"], 467_743),
        ("petl_ast/conformer_adapter.toml", ["classes=31", "frames=400"], 408_415),
        ("petl_ast/deep_prompt.toml", ["classes=31", "frames=400"], 255_775),
        ("petl_ast/bitfit.toml", ["classes=31", "frames=400"], 125_983),
        ("petl_ast/soft_moa.toml", ["classes=31", "frames=400"], 947_479),
        ("whispar/whispar.toml", [], 225_990),
        ("whispar/whispar.toml", ["classes=6", "frames=400"], 225_990),
    ],
)
def test_the_command_line_counts_what_was_published(path, settings, wanted, capsys):
    changes = [part for setting in settings for part in ("--set", setting)]
    assert adapt.main(["count", "--config", str(RECIPES / path), *changes]) == 0
    assert json.loads(capsys.readouterr().out)["trainable"] == wanted


D, L, REST = 768, 12, 2 * 768 + 31 * 769  # final norm and head
BOTTLENECK = 2 * D * 8 + 8 + D  # 8 wide
CONFORMER, CONFORMER_8 = (2 * D + 2 * b * (D + 1) + b * 32 + 2 * b + (b + 1) * D for b in (12, 8))
DENSE, SOFT = (7 * (2 * D * 6 + 6 + D) + 7 * router for router in (D + 1, D))  # 7 experts, 6 wide
VARIANTS = {  # spec section 1.3: on which file, and how many numbers train beside the final norm and the head
    "adapter_bottleneck_pfeiffer_sequential": ("bottleneck_adapter", L * (BOTTLENECK + 2 * D)),
    "adapter_bottleneck_houlsby_parallel": ("bottleneck_adapter", 2 * L * (BOTTLENECK + 2 * D)),
    "adapter_bottleneck_houlsby_sequential": ("bottleneck_adapter", 2 * L * (BOTTLENECK + 2 * D)),
    "adapter_conformer_96": ("conformer_adapter", L * (CONFORMER_8 + 2 * D)),
    "adapter_conformer_pfeiffer_sequential": ("conformer_adapter", L * (CONFORMER + 2 * D)),
    "adapter_conformer_houlsby_parallel": ("conformer_adapter", 2 * L * (CONFORMER + 2 * D)),
    "adapter_conformer_houlsby_sequential": ("conformer_adapter", 2 * L * (CONFORMER + 2 * D)),
    "ablation_mhsa_parallel_before": ("bottleneck_adapter", L * (BOTTLENECK + 2 * D)),
    "ablation_mhsa_after": ("bottleneck_adapter", L * (BOTTLENECK + 2 * D)),
    "ablation_mhsa_sequential_before": ("bottleneck_adapter", L * (BOTTLENECK + 2 * D)),
    "ablation_ffn_parallel_before": ("bottleneck_adapter", L * (BOTTLENECK + 2 * D)),
    "ablation_ffn_after": ("bottleneck_adapter", L * (BOTTLENECK + 2 * D)),
    "ablation_ffn_sequential_before": ("bottleneck_adapter", L * (BOTTLENECK + 2 * D)),
    "lora_q": ("lora", 2 * D * 12 * L),
    "lora_qk": ("lora", 4 * D * 12 * L),
    "lora_qkvo": ("lora", 8 * D * 12 * L),
    "dense_moa_ffn": ("dense_moa", L * (DENSE + 2 * D)),
    "dense_moa_houlsby": ("dense_moa", 2 * L * (DENSE + 2 * D)),
    "dense_moa_conformer": (
        "dense_moa",
        L * (7 * (2 * D + 12 * (D + 1) + 6 * 32 + 12 + 7 * D) + 7 * (D + 1) + 2 * D),
    ),
    "soft_moa_ffn": ("soft_moa", L * (SOFT + 2 * D)),
    "soft_moa_houlsby": ("soft_moa", 2 * L * (SOFT + 2 * D)),
    "soft_moa_normalize": ("soft_moa", L * (SOFT + 2 * D + 1)),
}
LAYOUTS = [f"{layout}_{place}" for layout in ("pfeiffer", "houlsby") for place in ("parallel", "sequential")][1:]


def read_variant(base: str, name: str) -> Config:
    """A variant over its method's file."""
    return read_config([RECIPES / "petl_ast" / f"{base}.toml", RECIPES / "petl_ast" / "variants" / f"{name}.toml"])


def of_variant(base: str, name: str, classes: int) -> tuple[Config, int]:
    """A variant, and how much of it trains."""
    config = read_variant(base, name)
    return config, build_classifier(config, [str(i) for i in range(classes)], without_weights=True).count()["trainable"]


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_petl_ast(name):
    base, within = VARIANTS[name]
    config, found = of_variant(base, name, 31)
    assert found == within + REST
    assert f"../{base}.toml" in (RECIPES / "petl_ast" / "variants" / f"{name}.toml").read_text()
    assert config.reported in ({}, {"trainable_31_classes_400_frames": found})
    assert config.recipe.epochs == 50
    assert config.seeds == (10,)


def test_no_two_variants_are_the_same():
    methods = [json.dumps(read_variant(base, name).method, sort_keys=True) for name, (base, _) in VARIANTS.items()]
    assert len(set(methods)) == len(methods)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("block", "size"), [("bottleneck", BOTTLENECK), ("conformer", CONFORMER_8)])
def test_variants_of_wav2vec2(block, size, layout):
    _, found = of_variant(f"wav2vec2/{block}_adapter", f"wav2vec2_{block}_{layout}", 4)
    assert found == (2 if layout.startswith("houlsby") else 1) * L * size + 4 * (D + 1)


def test_there_are_no_other_variants():
    wav2vec2 = {f"wav2vec2_{block}_{layout}" for block in ("bottleneck", "conformer") for layout in LAYOUTS}
    assert {path.stem for path in FILES if path.parent.name == "variants"} == VARIANTS.keys() | wav2vec2


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
    for name, released in RELEASED_MODELS.items():
        config = read_config(RECIPES / "peft_ser" / f"{name}.toml")
        assert (config.backbone, config.normalize, config.seconds) == (released.backbone, released.normalize, 10.0)
        assert config.layers == "weighted_conv"
        assert config.method[0]["rank"] == 16


@pytest.mark.parametrize(("classes", "task"), [(6, "cog"), (7, "emotions"), (152, "birdclef2022")])
def test_counts_of_whispar(classes, task):
    config = read_config(RECIPES / "whispar" / "whispar.toml")
    assert trainable("whispar/whispar.toml", classes) == config.reported["trainable"][task]


def test_method_and_data_are_put_together():
    config = read_config([str(RECIPES / "petl_ast" / name) for name in ("lora.toml", "data/esc50.toml")])
    assert (config.frames, config.recipe.lr, config.recipe.spec_augment) == (500, 5e-3, (24, 80))
    assert config.method[0]["name"] == "lora"
    assert config.protocol == "folds"


@pytest.mark.parametrize("data", sorted((RECIPES / "petl_ast" / "data").glob("*.toml")), ids=lambda path: path.stem)
def test_every_method_goes_with_every_dataset(data):
    """A method's file and a dataset's, of AST or of wav2vec 2.0: frames and SpecAugment are AST's.

    One method is built for each dataset; above, each method is for one.
    """
    for folder in (data.parents[1], data.parents[1] / "wav2vec2"):
        own = folder / "data" / data.name if data.stem != "few_shot" else data
        configs = [read_config([path, own]) for path in sorted(folder.glob("*.toml"))]
        assert all((config.frames is None) == (config.backbone == "wav2vec2") for config in configs)
        build_classifier(configs[0], ["a", "b"], without_weights=True)


@pytest.mark.parametrize(("name", "datasets"), [("nano", 3), ("base", 2)])
def test_comparisons_can_be_read(name, datasets):
    cells = read_comparison(str(RECIPES / "adapt" / f"compare_{name}.toml")).cells
    methods = {cell.method for cell in cells}
    assert len({cell.dataset for cell in cells}) == datasets
    assert len(methods) >= 8
    assert cells[0].method == "head only"
    for cell in cells:
        recipe = cell.config.recipe
        assert recipe.patience is not None
        assert recipe.schedule in ("plateau", "constant")  # which need no number of epochs
        assert recipe.epochs >= 20 * recipe.patience
    for cell in cells[: len(methods)]:
        assert build_classifier(cell.config, ["a", "b"], without_weights=True).count()["trainable"] > 0


@pytest.mark.parametrize(
    ("path", "blocks", "wanted"),
    [
        ("whispar/whispar.toml", [0, 1, 2], 225_990 - 3 * 33_824),
        ("whispar/whispar.toml", [5], 225_990 - 5 * 33_824),
        ("petl_ast/lora.toml", [0, 11], 467_743 - 10 * 36_864),
    ],
)
def test_blocks_alone(path, blocks, wanted):
    """WhisPAr's ``adapt_list``: adapters in some blocks; prompts and LayerNorms stay where they are."""
    settings = ["classes=31", "frames=400"] if "petl" in path else []
    assert trainable(path, 31 if "petl" in path else 6, *settings, f"blocks={blocks}") == wanted
    names = {
        method["name"]: method.get("blocks") for method in read_config(RECIPES / path, [f"blocks={blocks}"]).method
    }
    assert names.pop("layer_norm") is None
    assert blocks in names.values()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["blocks=3"], "blocks must be a list"),
        (['blocks=["x"]'], "blocks must be a list"),
        (["blocks=[0]", 'method="bitfit"'], "there is none here"),
        (["blocks=[0]", "method=[]"], "there is none here"),
    ],
)
def test_blocks_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        read_config(RECIPES / "whispar/whispar.toml", changes)
