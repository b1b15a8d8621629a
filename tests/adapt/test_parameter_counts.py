"""Numbers of parameters: the tables of spec sections 1.3, 2.3 and 3.1, on models of full size without weights."""

from __future__ import annotations

import copy
import functools

import pytest
from torch import nn

from whisper_at.adapt import adapt, count_parameters, random_backbone
from whisper_at.adapt.config import meta_backbone

pytest.importorskip("transformers")

FINAL = {"name": "layer_norm", "sites": ["final"]}
LN_FFN = {"name": "layer_norm", "sites": ["ffn", "final"]}
LN_ATTN = {"name": "layer_norm", "sites": ["attn", "final"]}
LN_ALL = {"name": "layer_norm"}


@functools.cache
def plain_backbone(name: str, frames: int | None):
    return random_backbone(name, frames=frames, device="meta")


def count(name: str, methods, classes: int, frames: int | None = None) -> dict[str, int]:
    """The counts of a method with a linear head."""
    backbone = copy.deepcopy(plain_backbone(name, frames))
    adapt(backbone, methods)
    return count_parameters(backbone, nn.Linear(backbone.width, classes, device="meta"))


def adapter(**settings):
    return {"name": "adapter", **settings}


def moa(kind: str, **settings):
    return {"name": f"{kind}_moa", "experts": 7, "reduction": 128, **settings}


AST = [  # table of section 1.3, C = 31, T = 400
    ([{"name": "linear_probe"}], 25_375),
    ([{"name": "bitfit"}], 125_983),
    ([{"name": "lora", "rank": 12}, FINAL], 467_743),
    ([{"name": "lora", "rank": 12, "sites": ["q"]}, FINAL], 246_559),
    ([{"name": "lora", "rank": 12, "sites": ["q", "k", "v", "o"]}, FINAL], 910_111),
    ([adapter(dim=12), LN_FFN], 274_351),
    ([adapter(reduction=96), LN_FFN], 200_575),
    ([adapter(dim=12, layout="houlsby"), LN_ALL], 523_327),
    ([adapter(dim=8, layout="houlsby"), LN_ALL], 375_775),
    ([adapter(block="conformer", dim=12), LN_FFN], 408_415),
    ([adapter(block="conformer", reduction=96), LN_FFN], 296_095),
    ([adapter(block="conformer", dim=12, layout="houlsby"), LN_ALL], 791_455),
    ([adapter(block="conformer", dim=8, layout="houlsby"), LN_ALL], 566_815),
    ([{"name": "prompt", "kind": "shallow", "tokens": 25}, FINAL], 44_575),
    ([{"name": "prompt", "kind": "deep_replace", "tokens": 25}, FINAL], 255_775),
    ([{"name": "prefix", "tokens": 24}, FINAL], 246_559),
    ([moa("dense"), LN_ATTN], 947_563),
    ([moa("soft"), LN_ATTN], 947_479),
    ([moa("soft", normalize=True), LN_ATTN], 947_479 + 12),
    ([moa("dense", layout="houlsby"), LN_ALL], 1_869_751),
    ([moa("soft", layout="houlsby"), LN_ALL], 1_869_583),
    ([{"name": "full"}], 85_639_711),
]


@pytest.mark.parametrize(("methods", "wanted"), AST, ids=[f"{m[0]['name']}-{n}" for m, n in AST])
def test_petl_ast(methods, wanted):
    """The Conformer's LayerNorm counts, and here it has a gradient (defect P5)."""
    assert count("ast", methods, 31, frames=400)["trainable"] == wanted


def test_ast_without_a_head():
    assert count_parameters(random_backbone("ast", device="meta"))["frozen"] == 86_187_264
    assert count_parameters(random_backbone("ast", frames=400, device="meta"))["frozen"] == 85_615_872
    bottleneck = count("ast", [adapter(reduction=64), {"name": "layer_norm", "sites": ["ffn"]}], 31, frames=400)
    assert bottleneck["patch_and_norms"] == 248_976  # 0.29 % of the encoder
    conformer = count("ast", [adapter(block="conformer", reduction=96), LN_FFN], 31, frames=400)
    assert conformer["patch"] == 252_288


def test_convpass():
    """L (2Db + b + D + 3b^2 + b), spec section 5."""
    assert count("ast", [adapter(block="convpass", dim=8)], 31)["patch"] == 12 * (2 * 768 * 8 + 8 + 768 + 3 * 64 + 8)


def test_wav2vec2():
    """PETL_AST's wav2vec 2.0. Its counts hold 768 for masked_spec_embed, which is trained by nothing and not here."""
    unused = 768
    assert count("wav2vec2", [adapter(reduction=96)], 4)["trainable"] == 160_612 - unused
    assert count("wav2vec2", [adapter(block="conformer", reduction=96)], 4)["trainable"] == 256_132 - unused
    assert count("wav2vec2", [{"name": "last_k", "k": 3}], 4)["trainable"] == 21_266_692
    assert count("wav2vec2", [{"name": "linear_probe"}], 4)["trainable"] == 3_076


SER = {  # table of section 2.3: adapter 128, prompt 5, LoRA 16, LoRA 32
    "whisper-tiny": (395_264, 7_680, 245_760, 491_520),
    "whisper-base": (790_272, 15_360, 491_520, 983_040),
    "whisper-small": (2_370_048, 46_080, 1_474_560, 2_949_120),
    "wav2vec2": (2_370_048, 46_080, 1_474_560, 2_949_120),
    "wavlm-base-plus": (2_370_048, 46_080, 1_474_560, 2_949_120),
    "whisper-medium": (6_319_104, 122_880, 3_932_160, 7_864_320),
    "wavlm-large": (6_319_104, 122_880, 3_932_160, 7_864_320),
    "mms-300m": (6_319_104, 122_880, 3_932_160, 7_864_320),
}


@pytest.mark.parametrize("name", SER)
def test_peft_ser(name):
    """Prompts are as wide as the backbone (defect S7)."""
    one, other = ({"name": "lora", "sites": ["up", "down"], "rank": rank, "alpha": 1} for rank in (16, 32))
    prompt = {"name": "prompt", "kind": "deep_prepend", "tokens": 5}
    for method, wanted in zip(({"name": "scaled_parallel"}, prompt, one, other), SER[name]):
        counts = count(name, [method], 4)
        assert counts["patch"] == counts["patch_and_norms"] == wanted
    assert count(name, [{"name": "post_ffn"}], 4)["patch"] == SER[name][0]
    both = count(name, [{"name": "post_ffn"}, prompt, one], 4)  # `combined`
    assert both["patch"] == sum(SER[name][:3])


def whispar(bottleneck: int = 16, prompts: int = 2, blocks=None):
    skip = {"dim": bottleneck, "layout": "houlsby", "placement": "after", "activation": "relu", "blocks": blocks}
    return [
        {"name": "cls_token"},
        {"name": "prompt", "kind": "deep_append", "tokens": prompts},
        adapter(**skip),
        LN_ALL,
    ]


@pytest.mark.parametrize(("classes", "wanted"), [(6, 225_990), (7, 226_503), (152, 300_888)])
def test_whispar(classes, wanted):
    counts = count("whisper-base", whispar(), classes)
    assert counts["trainable"] == wanted
    assert counts["patch"] == 202_944 + 512 + 6_144
    assert counts["patch_and_norms"] == counts["patch"] + 12_288 + 1_024
    assert counts["frozen"] == 19_822_592 - 12_288 - 1_024  # of the encoder, the norms train


def test_whispar_with_adapters_in_chosen_blocks():
    """Section 3.1: blocks that are not listed still have prompts."""
    few, all_ = (count("whisper-base", whispar(blocks=blocks), 6)["patch"] for blocks in ([0, 5], None))
    assert all_ - few == 4 * 2 * (2 * 512 * 16 + 16 + 512)


def test_bitfit_where_keys_have_no_bias():
    assert count("whisper-base", [{"name": "bitfit"}], 6)["patch"] == 10 * 512 * 6 + 512


def test_the_three_counts_and_the_rest_make_the_whole():
    for methods in (whispar(), [{"name": "bitfit"}], [{"name": "last_k", "k": 2}]):
        backbone = random_backbone("whisper-tiny", device="meta")
        adapt(backbone, methods)
        head = nn.Linear(384, 5, device="meta")
        counts = count_parameters(backbone, head)
        whole = sum(p.numel() for p in [*backbone.parameters(), *head.parameters()])
        assert counts["trainable"] + counts["frozen"] == whole
        assert counts["trainable"] == counts["patch_and_norms"] + 384 * 5 + 5


@pytest.mark.parametrize("other", [{"name": "bitfit"}, {"name": "last_k", "k": 1}, {"name": "full"}])
def test_norms_that_another_method_trains_are_of_that_method(other):
    """Whatever the order; only those that ``layer_norm`` alone lets train are counted apart."""
    alone = count("whisper-tiny", [other], 5)["patch"]
    for methods in ([other, LN_ALL], [LN_ALL, other]):
        found = count("whisper-tiny", methods, 5)
        assert found["patch"] == alone
        assert found["patch_and_norms"] - alone == {"bitfit": 9, "last_k": 3 * 4, "full": 0}[other["name"]] * 384


@pytest.mark.parametrize(("name", "mels"), [("large-v2", 80), ("large", 128), ("large-v3", 128), ("turbo", 128)])
def test_the_largest_whispers_count_without_weights(name, mels):
    """openai-whisper's encoder has 636.8 million parameters, and 635.0 million with 80 mel channels."""
    backbone = meta_backbone(name)
    block = 12 * 1280**2 + (3 + 4 + 1) * 1280 + 4 * 1280  # keys have no bias
    front = 3 * mels * 1280 + 1280 + 3 * 1280**2 + 1280
    assert count_parameters(backbone)["frozen"] == 32 * block + front + 2 * 1280
    assert all(p.device.type == "meta" for p in backbone.parameters())
