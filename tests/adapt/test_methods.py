"""Methods: their formulas at weights that are not zero, and what holds for every method on every backbone."""

from __future__ import annotations

import json
import math
import shutil
import sysconfig
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_backbones import FAMILIES, adapted_and_plain_block, make_backbone, make_clips, perturb, randomize
from torch import Tensor, nn

from whisper_at.adapt import (
    METHODS,
    adapt,
    random_backbone,
)
from whisper_at.adapt.backbones.blocks import Block
from whisper_at.adapt.methods.adapters import BottleneckAdapter, ConformerAdapter, ConvpassAdapter, MaskedBatchNorm
from whisper_at.adapt.methods.moa import DenseMoA, SoftMoA
from whisper_at.checkpoints.files import read_tensors, save_safetensors
from whisper_at.train.fit import trainable_state

pytest.importorskip("transformers")

HOULSBY = {"name": "adapter", "dim": 4, "layout": "houlsby", "placement": "after", "activation": "relu"}
IDENTITY_AT_START = {  # methods that change nothing until they are trained
    "linear_probe": [{"name": "linear_probe"}],
    "full": [{"name": "full"}],
    "last_k": [{"name": "last_k", "k": 2}],
    "bitfit": [{"name": "bitfit"}],
    "layer_norm": [{"name": "layer_norm"}],
    "lora": [{"name": "lora", "sites": ["q", "k", "v", "o", "up", "down"], "rank": 3}],
    "bottleneck": [{"name": "adapter", "dim": 4, "layout": "houlsby"}],
    "before": [{"name": "adapter", "dim": 4, "layout": "houlsby", "placement": "before"}],
    "after": [HOULSBY],
    "conformer": [{"name": "adapter", "block": "conformer", "dim": 4, "kernel": 5, "layout": "houlsby"}],
    "convpass": [{"name": "adapter", "block": "convpass", "dim": 4}],
    "scaled_parallel": [{"name": "scaled_parallel", "dim": 4}],
    "stream": [{"name": "scaled_parallel", "dim": 4, "reads": "stream"}],
    "post_ffn": [{"name": "post_ffn", "dim": 4}],
    "dense_moa": [{"name": "dense_moa", "dim": 4, "experts": 3, "layout": "houlsby"}],
    "dense_moa_conformer": [{"name": "dense_moa", "dim": 4, "experts": 2, "block": "conformer"}],
    "soft_moa": [{"name": "soft_moa", "dim": 4, "experts": 3, "slots": 2}],
    "soft_moa_normalize": [{"name": "soft_moa", "dim": 4, "experts": 3, "normalize": True, "location": "ffn"}],
}
TOKEN_METHODS = {  # methods that add tokens
    "shallow": [{"name": "prompt", "kind": "shallow", "tokens": 3}],
    "deep_replace": [{"name": "prompt", "kind": "deep_replace", "tokens": 3}],
    "deep_prepend": [{"name": "prompt", "kind": "deep_prepend", "tokens": 3}],
    "deep_append": [{"name": "prompt", "kind": "deep_append", "tokens": 3}],
    "prefix": [{"name": "prefix", "tokens": 4}],
    "cls_token": [{"name": "cls_token"}],
    "whispar": [
        {"name": "prompt", "kind": "deep_append", "tokens": 2},
        {"name": "cls_token"},
        HOULSBY,
        {"name": "layer_norm"},
    ],
    "combined": [  # of PEFT-SER
        {"name": "post_ffn", "dim": 4},
        {"name": "prompt", "kind": "deep_prepend", "tokens": 1},
        {"name": "lora", "sites": ["up", "down"], "rank": 2, "alpha": 1},
    ],
    "all": [
        {"name": "adapter", "block": "conformer", "dim": 4, "kernel": 5},
        {"name": "prompt", "kind": "deep_append", "tokens": 2},
        {"name": "prefix", "tokens": 2},
        {"name": "soft_moa", "dim": 4, "experts": 2},
    ],
}
ALL_METHODS = IDENTITY_AT_START | TOKEN_METHODS


def fits(name: str, method: str) -> bool:
    """Whether there is something to train: AST has a CLS already, and post-norm encoders no final norm."""
    nothing = name in ("wav2vec2-tiny", "hubert-tiny", "wavlm-tiny") and method == "linear_probe"
    return not nothing and not (name == "ast-tiny" and method in ("cls_token", "whispar"))


def cases(names, others=("shallow", "whispar", "combined", "all")):
    """Parametrize by all methods on some families, and by a few that join several methods on the other families."""
    found = [
        (name, method)
        for name in FAMILIES
        for method in (ALL_METHODS if name in names else others)
        if fits(name, method)
    ]
    return pytest.mark.parametrize(("name", "method"), found, ids=[f"{m}-{n}" for n, m in found])


# Pre-norm without special tokens, with special tokens, and post-norm with a relative bias.
on_each_architecture = cases(("whisper-nano", "ast-tiny", "wavlm-tiny"))
on_one_backbone = cases(("wavlm-tiny",))


# --- every method on every backbone -------------------------------------------------------------------------


@pytest.mark.parametrize("method", IDENTITY_AT_START)
@pytest.mark.parametrize("name", FAMILIES)
def test_p2_w7_s1_methods_change_nothing_until_they_are_trained(name, method):
    waveforms, lengths = make_clips(0.7, 0.4)
    plain, adapted = (
        make_backbone(name)(waveforms, lengths),
        make_backbone(name, IDENTITY_AT_START[method])(waveforms, lengths),
    )
    assert (plain.special, plain.prompts) == (adapted.special, adapted.prompts)
    for a, b in zip(plain.states, adapted.states):
        assert (a - b).abs().max() < 1e-6


@on_each_architecture
def test_states_before_the_first_trained_block_can_be_kept(name, method):
    backbone = perturb(make_backbone(name, ALL_METHODS[method]))
    waveforms, lengths = make_clips(0.7, 0.4)
    wanted, count = backbone(waveforms, lengths), backbone.num_frozen_blocks
    expected = {"full": None, "linear_probe": backbone.layers, "last_k": backbone.layers - 2}
    assert count == expected.get(method, 0)
    if count is None:
        with pytest.raises(ValueError, match="all of"):
            backbone.frozen_states(waveforms, lengths)
        return
    states, mask = backbone.frozen_states(waveforms, lengths)
    assert states.shape[1] == count + 1
    found = backbone.encode_from(states, mask)
    assert (found.special, found.prompts) == (wanted.special, wanted.prompts)
    assert torch.equal(found.mask, wanted.mask)
    assert len(found.states) == len(wanted.states)
    for a, b in zip(found.states, wanted.states):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(backbone.encode_from(states[:, -1:], mask).states[-1], wanted.states[-1])


def test_of_a_plain_encoder_everything_is_frozen():
    backbone = make_backbone("whisper-nano")
    assert backbone.num_frozen_blocks == backbone.layers + 1
    with pytest.raises(ValueError, match="nothing of"):
        backbone.frozen_states(*make_clips(0.7, 0.4))


@on_each_architecture
def test_all_trainable_parameters_and_no_others_have_gradients(name, method):
    backbone = perturb(make_backbone(name, ALL_METHODS[method])).train()
    for parameter_name, parameter in backbone.named_parameters():
        if parameter_name.endswith("down.bias"):  # a ReLU that is 0 for all tokens has no gradient
            parameter.data += 1
    waveforms, lengths = make_clips(0.7, 0.4)
    hidden = backbone(waveforms, lengths)
    sum((state * torch.randn_like(state) * hidden.mask[..., None]).sum() for state in hidden.states[1:]).backward()
    for parameter_name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name
            # a bias of keys adds the same to all scores of a query, and DIST is replaced by prompts
            without_effect = parameter_name.endswith((".k.bias", "distillation_token"))
            assert without_effect or parameter.grad.any(), parameter_name
        else:
            assert parameter.grad is None, parameter_name


@on_each_architecture
def test_s2_trained_parameters_and_no_others_are_saved(name, method, tmp_path):
    backbone = perturb(make_backbone(name, ALL_METHODS[method]))
    state = trainable_state(backbone)
    parameters = dict(backbone.named_parameters())
    assert {key for key in state if key in parameters} == {k for k, p in parameters.items() if p.requires_grad}
    save_safetensors(state, tmp_path / "method.safetensors")
    again = make_backbone(name, json.loads(json.dumps(backbone.methods)))
    missing, unexpected = again.load_state_dict(read_tensors(tmp_path / "method.safetensors")[0], strict=False)
    assert not unexpected
    assert not set(missing) & set(state)
    waveforms, _lengths = make_clips(0.5)
    assert torch.equal(again(waveforms).states[-1], backbone(waveforms).states[-1])


@on_each_architecture
def test_s8_adapted_clips_alone_in_a_batch_and_padded_are_the_same(name, method):
    backbone = perturb(make_backbone(name, ALL_METHODS[method]), std=0.1)
    waveforms, lengths = make_clips(0.7, 0.45, 0.3)
    batch = backbone(waveforms, lengths)
    for i, n in enumerate(lengths.tolist()):
        single = backbone(waveforms[i : i + 1, :n])
        assert (single.special, single.prompts) == (batch.special, batch.prompts)
        for one, many in zip(single.states, batch.states):
            torch.testing.assert_close(many[i][batch.mask[i]], one[0], rtol=1e-4, atol=1e-4)


@on_one_backbone
def test_bfloat16_autocast(name, method):
    backbone = perturb(make_backbone(name, ALL_METHODS[method]), std=0.05).train()
    waveforms, lengths = make_clips(0.5, 0.4)
    full = backbone.eval()(waveforms, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        half = backbone(waveforms, lengths)
        half.states[-1].float().square().mean().backward()
    real = full.mask
    error = (half.states[-1][real].float() - full.states[-1][real]).abs().mean()
    assert error < 0.05 * full.states[-1][real].abs().mean()


# Methods that run code of their own, several at once, on one family, and what joins most of them on the others' blocks.
TRACED = "before convpass stream dense_moa_conformer soft_moa_normalize deep_replace whispar combined all".split()


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *(("wavlm-tiny", method) for method in TRACED),
        *((name, "all") for name in ("whisper-nano", "ast-tiny", "wavlm-stable-tiny")),
    ],
)
def test_torch_compile(name, method):
    torch.compiler.reset()
    backbone = perturb(make_backbone(name, ALL_METHODS[method]))
    waveforms, lengths = make_clips(0.5, 0.4)
    values, mask = backbone.front(waveforms, lengths)
    wanted = backbone.encode(values, mask).states[-1]
    compiled = torch.compile(backbone.encode, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(values, mask).states[-1], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    not (shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists()),
    reason="torch.compile makes machine code by g++ and Python's headers",
)
def test_torch_compile_to_machine_code(monkeypatch):
    """Four kinds of method at once, by the default backend."""
    # Inductor's cache does not tell vector widths apart, which ATEN_CPU_CAPABILITY changes, and would mix them.
    folder = f"torchinductor-{torch.backends.cpu.get_cpu_capability()}"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), folder)))
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # more are processes that import PyTorch first
    monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", True)  # or six programs are compiled to see
    torch.compiler.reset()
    conformer = {"name": "adapter", "block": "conformer", "dim": 4, "kernel": 3}
    prompt = {"name": "prompt", "kind": "deep_append", "tokens": 2}
    backbone = make_backbone("whisper-nano", [{"name": "lora", "rank": 2}, conformer, prompt, {"name": "layer_norm"}])
    del perturb(backbone).blocks[1:]  # all blocks are alike
    values, mask = backbone.front(*make_clips(0.5, 0.4))
    wanted = backbone.encode(values, mask).states[-1]
    compiled = torch.compile(backbone.encode, fullgraph=True)
    torch.testing.assert_close(compiled(values, mask).states[-1], wanted, rtol=1e-4, atol=1e-4)


# --- formulas: where adapters are added ---------------------------------------------------------------------


def sublayers(block: Block, h: Tensor, attn_before=0.0, attn=None, ffn_before=0.0, ffn=None, total=None) -> Tensor:
    """A block by the two templates of spec section 0, with deltas given as functions of what they may read."""

    def zero(**_):
        return 0.0

    attn, ffn, total = attn or zero, ffn or zero, total or zero
    if block.pre_norm:
        n1 = block.norm1(h)
        x = n1 + (attn_before(n1) if attn_before else 0.0)
        a = block.attn(x)
        r = h + a + attn(x=n1, y=a)
        n2 = block.norm2(r)
        f = block.ffn(n2 + (ffn_before(n2) if ffn_before else 0.0))
        return r + f + ffn(x=n2, y=f, stream=r)
    a = block.attn(h + (attn_before(h) if attn_before else 0.0))
    u = h + a + attn(x=h, y=a)
    r = block.norm1(u)
    f = block.ffn(r + (ffn_before(r) if ffn_before else 0.0))
    s = r + f + ffn(x=r, y=f, stream=u)
    return block.norm2(s + total(s=s))


BOTH_NORMS = pytest.mark.parametrize("name", ["whisper-nano", "wav2vec2-tiny"])


@BOTH_NORMS
@pytest.mark.parametrize("placement", ["parallel", "before", "after"])
def test_p15_three_distinct_placements_of_adapters(name, placement):
    block, plain, h = adapted_and_plain_block(
        name, {"name": "adapter", "dim": 4, "layout": "houlsby", "placement": placement}
    )
    at_attn, at_ffn = block.patches["adapter_attn"], block.patches["adapter_ffn"]
    if placement == "parallel":
        wanted = sublayers(plain, h, attn=lambda x, y: at_attn(x), ffn=lambda x, y, stream: at_ffn(x))
    elif placement == "after":
        wanted = sublayers(plain, h, attn=lambda x, y: at_attn(y), ffn=lambda x, y, stream: at_ffn(y))
    else:
        wanted = sublayers(plain, h, attn_before=at_attn, ffn_before=at_ffn)
    torch.testing.assert_close(block(h), wanted, rtol=1e-5, atol=1e-5)
    assert (block(h) - plain(h)).abs().max() > 1e-2


@BOTH_NORMS
@pytest.mark.parametrize("location", ["attn", "ffn"])
def test_pfeiffer_is_at_one_sublayer(name, location):
    block, plain, h = adapted_and_plain_block(name, {"name": "adapter", "dim": 4, "location": location})
    (adapter,) = block.patches.values()
    site = {location: (lambda x, y, stream=None: adapter(x))}
    torch.testing.assert_close(block(h), sublayers(plain, h, **site), rtol=1e-5, atol=1e-5)


@BOTH_NORMS
def test_s1_scaled_parallel_adds_a_tenth_of_e_and_not_its_input(name):
    for reads in ("ffn.in", "stream"):
        block, plain, h = adapted_and_plain_block(name, {"name": "scaled_parallel", "dim": 4, "reads": reads})
        adapter = block.patches["scaled_parallel"]

        def delta(x, y, stream, adapter=adapter, reads=reads):
            z = stream if reads == "stream" else x
            return 0.1 * adapter.up(F.relu(adapter.down(z)))

        torch.testing.assert_close(block(h), sublayers(plain, h, ffn=delta), rtol=1e-5, atol=1e-5)


@BOTH_NORMS
def test_s1_post_ffn_adds_a_tenth_of_e_of_what_it_follows(name):
    block, plain, h = adapted_and_plain_block(name, {"name": "post_ffn", "dim": 4})
    adapter = block.patches["post_ffn"]

    def delta(z):
        return 0.1 * adapter.up(F.relu(adapter.down(z)))

    if plain.pre_norm:
        wanted = sublayers(plain, h, ffn=lambda x, y, stream: delta(y))
    else:
        wanted = sublayers(plain, h, total=lambda s: delta(s))
    torch.testing.assert_close(block(h), wanted, rtol=1e-5, atol=1e-5)


@BOTH_NORMS
@pytest.mark.parametrize("kind", ["dense_moa", "soft_moa"])
def test_p6_a_mixture_at_attention_is_added_once(name, kind):
    block, plain, h = adapted_and_plain_block(name, {"name": kind, "dim": 4, "experts": 3})
    (mixture,) = block.patches.values()
    torch.testing.assert_close(block(h), sublayers(plain, h, attn=lambda x, y: mixture(x)), rtol=1e-5, atol=1e-5)


# --- formulas: what adapters are ----------------------------------------------------------------------------


def test_bottleneck_is_up_of_gelu_of_down():
    module, x = randomize(BottleneckAdapter(6, 3)), torch.randn(2, 5, 6)
    inner = x @ module.down.weight.T + module.down.bias
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    torch.testing.assert_close(module(x), inner @ module.up.weight.T + module.up.bias)


def test_p5_the_conformer_goes_on_with_what_its_norm_gives():
    module, x = randomize(ConformerAdapter(6, 3, 5)), torch.randn(2, 9, 6)
    module.batch_norm.running_mean.normal_()
    n = F.layer_norm(x, (6,), module.norm.weight, module.norm.bias)
    left, gate = (n @ module.enter.weight[..., 0].T + module.enter.bias).chunk(2, dim=-1)
    y = F.pad(left * torch.sigmoid(gate), (0, 0, 2, 2))
    y = sum(y[:, k : k + 9] * module.depthwise.weight[:, 0, k] for k in range(5)) + module.depthwise.bias
    b = module.batch_norm
    y = (y - b.running_mean) / torch.sqrt(b.running_var + b.eps) * b.weight + b.bias
    wanted = (y * torch.sigmoid(y)) @ module.leave.weight[..., 0].T + module.leave.bias
    torch.testing.assert_close(module(x), wanted, rtol=1e-4, atol=1e-5)


def test_p9_convpass_uses_its_convolution():
    module, x = randomize(ConvpassAdapter(6, 3)), torch.randn(2, 9, 6)
    y = x @ module.down.weight.T + module.down.bias
    y = F.pad(y * torch.sigmoid(1.702 * y), (0, 0, 1, 1))
    y = sum(y[:, k : k + 9] @ module.convolution.weight[..., k].T for k in range(3)) + module.convolution.bias
    wanted = (y * torch.sigmoid(1.702 * y)) @ module.up.weight.T + module.up.bias
    torch.testing.assert_close(module(x), wanted, rtol=1e-4, atol=1e-5)


def test_batch_norm_in_training_is_of_real_tokens_only():
    x, mask = torch.randn(2, 3, 6), torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]).bool()
    ours, plain = MaskedBatchNorm(3).train(), nn.BatchNorm1d(3).train()
    tokens = torch.cat([x[0].T, x[1, :, :2].T])
    wanted = plain(tokens)
    got = ours(x, mask)
    torch.testing.assert_close(torch.cat([got[0].T, got[1, :, :2].T]), wanted)
    torch.testing.assert_close(ours.running_var, plain.running_var)
    assert not got[1, :, 2:].any()


def test_dense_mixture_weighs_all_experts_for_each_token():
    module = randomize(DenseMoA([BottleneckAdapter(6, 2) for _ in range(3)], 6))
    x = torch.randn(2, 4, 6)
    out = module(x)
    for b in range(2):
        for m in range(4):
            g = torch.softmax(module.router(x[b, m]), 0)
            wanted = sum(g[e] * module.experts[e](x[b, m]) for e in range(3))
            torch.testing.assert_close(out[b, m], wanted)


@pytest.mark.parametrize("normalize", [False, True])
def test_p8_soft_mixture_by_its_definition(normalize):
    """Normalisation is over D, for the scores only; the slots take the tokens as they are."""
    module = randomize(SoftMoA([BottleneckAdapter(6, 2) for _ in range(3)], 6, 2, normalize))
    x = torch.randn(1, 5, 6)
    tokens, phi = x[0], module.phi.reshape(6, 6)  # (dim, experts * slots)
    scores = tokens @ phi
    if normalize:
        unit = phi / phi.norm(dim=0, keepdim=True)
        scores = (tokens / tokens.norm(dim=1, keepdim=True)) @ unit * module.scale
    dispatch, combine = scores.softmax(0), scores.softmax(1)
    slots = dispatch.T @ tokens
    outputs = torch.stack([module.experts[j // 2](slots[j]) for j in range(6)])
    torch.testing.assert_close(module(x)[0], combine @ outputs, rtol=1e-4, atol=1e-5)


def test_p7_p9_experts_of_mixtures():
    make_backbone("whisper-nano", {"name": "dense_moa", "dim": 4, "block": "conformer"})
    make_backbone("whisper-nano", {"name": "dense_moa", "dim": 4, "block": "convpass"})
    for block in ("convpass", "conformer"):
        with pytest.raises(ValueError, match="slots have no order"):
            make_backbone("whisper-nano", {"name": "soft_moa", "dim": 4, "block": block})


# --- tokens -------------------------------------------------------------------------------------------------


def test_positions_of_added_tokens():
    waveforms, lengths = make_clips(0.5, 0.4)
    plain = make_backbone("ast-tiny")(waveforms, lengths).states[0]
    ast = make_backbone("ast-tiny", TOKEN_METHODS["shallow"])(waveforms, lengths)  # CLS, 3 prompts, patches; no DIST
    assert (ast.special, ast.prompts) == (1, slice(1, 4))
    torch.testing.assert_close(ast.states[0][:, :1], plain[:, :1])
    torch.testing.assert_close(ast.states[0][:, 4:], plain[:, 2:])
    plain = make_backbone("whisper-nano")(waveforms, lengths).states[0]
    both = make_backbone("whisper-nano", [*TOKEN_METHODS["deep_replace"], {"name": "cls_token"}])(waveforms, lengths)
    assert (both.special, both.prompts) == (1, slice(1, 4))
    torch.testing.assert_close(both.states[0][:, 4:], plain)
    assert not both.states[0][:, 0].any()
    assert both.mask.sum(1).tolist() == [4 + 25, 4 + 20]
    for method in ("deep_prepend", "deep_append"):  # cut off after every block
        hidden = make_backbone("whisper-nano", TOKEN_METHODS[method])(waveforms, lengths)
        assert hidden.prompts is None
        assert hidden.states[-1].shape == plain.shape


def test_shallow_prompts_are_further_tokens():
    backbone, plain = perturb(make_backbone("whisper-nano", TOKEN_METHODS["shallow"])), make_backbone("whisper-nano")
    waveforms, _ = make_clips(0.5)
    prompts = backbone.sequence["prompt_shallow"].tokens
    h = torch.cat([prompts[None], plain(waveforms).states[0]], dim=1)
    for block in plain.blocks:
        h = block(h)
    torch.testing.assert_close(backbone(waveforms).states[-1], plain.norm(h), rtol=1e-5, atol=1e-5)


def test_deep_replace_is_prepend_and_cut_but_for_the_last_prompts():
    """Spec section 5: the outputs of old prompts never survive. (AST's DIST apart, so on Whisper.)"""
    replace, prepend = (make_backbone("whisper-nano", TOKEN_METHODS[f"deep_{kind}"]) for kind in ("replace", "prepend"))
    torch.manual_seed(2)
    tokens = torch.randn(3, 3, 32)
    for backbone, kind in ((replace, "replace"), (prepend, "prepend")):
        with torch.no_grad():
            backbone.sequence[f"prompt_deep_{kind}"].tokens.copy_(tokens)
    waveforms, lengths = make_clips(0.5, 0.4)
    one, other = replace(waveforms, lengths), prepend(waveforms, lengths)
    for a, b in zip(one.states, other.states):
        torch.testing.assert_close(a[:, 3:][other.mask], b[other.mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "same"), [("whisper-nano", True), ("hubert-tiny", True), ("wavlm-tiny", False)])
def test_prepending_is_appending_unless_attention_depends_on_position(name, same):
    """Spec section 5: not for WavLM, whose relative bias sees where prompts are."""
    prepend, append = (make_backbone(name, TOKEN_METHODS[f"deep_{kind}"]) for kind in ("prepend", "append"))
    if name == "wavlm-tiny":
        for backbone in (prepend, append):
            torch.manual_seed(4)
            nn.init.normal_(backbone.relative.embedding.weight, std=2.0)
    torch.manual_seed(2)
    tokens = torch.randn(3, 3, 32)
    for backbone, kind in ((prepend, "prepend"), (append, "append")):
        with torch.no_grad():
            backbone.sequence[f"prompt_deep_{kind}"].tokens.copy_(tokens)
    waveforms, lengths = make_clips(0.5, 0.4)
    one, other = prepend(waveforms, lengths), append(waveforms, lengths)
    difference = (one.states[-1] - other.states[-1])[one.mask].abs().max()
    assert difference < 1e-5 if same else difference > 1e-3


@pytest.mark.parametrize("kind", ["deep_prepend", "deep_append"])
def test_prompts_that_stay_and_prompts_that_go_combine_in_any_order(kind):
    backbones = {}
    for order in (("deep_replace", kind), (kind, "deep_replace")):
        backbone = make_backbone("whisper-nano", [{"name": "prompt", "kind": one, "tokens": 2} for one in order])
        for name, patch in sorted(backbone.sequence.items()):
            torch.manual_seed(len(name))
            nn.init.normal_(patch.tokens)
        backbones[order[0]] = backbone
    found = [backbone(*make_clips(0.5, 0.4)) for backbone in backbones.values()]
    torch.testing.assert_close(found[0].states[-1], found[1].states[-1], rtol=1e-4, atol=1e-5)
    assert found[0].prompts == found[1].prompts == slice(0, 2)
    for backbone, hidden in zip(backbones.values(), found):  # every prompt of every block has an effect
        hidden.states[-1].square().sum().backward()
        assert all(patch.tokens.grad.abs().sum(-1).all() for patch in backbone.sequence.values())


def test_w6_prompts_are_cut_off_by_count_and_none_are_refused():
    with pytest.raises(ValueError, match="tokens of prompt must be above 0, not 0; to do without"):
        make_backbone("whisper-nano", {"name": "prompt", "kind": "deep_append", "tokens": 0})
    one = make_backbone("whisper-nano", {"name": "prompt", "kind": "deep_append", "tokens": 1})
    assert one(make_clips(0.5)[0]).states[-1].shape == (1, 25, 32)


@BOTH_NORMS
def test_prefix_is_attention_over_more_keys(name):
    backbone, plain = (
        perturb(make_backbone(name, TOKEN_METHODS["prefix"])).blocks[1].attn,
        make_backbone(name).blocks[1].attn,
    )
    x = torch.randn(2, 7, 32)
    q, k, v = plain.q(x), plain.k(x), plain.v(x)
    k = torch.cat([k, backbone.prefix.keys.expand(2, -1, -1)], dim=1)  # the place does not matter
    v = torch.cat([v, backbone.prefix.values.expand(2, -1, -1)], dim=1)
    heads = []
    for q_, k_, v_ in zip(*(t.chunk(4, dim=-1) for t in (q, k, v))):
        heads.append((q_ @ k_.transpose(1, 2) / math.sqrt(8)).softmax(-1) @ v_)
    torch.testing.assert_close(backbone(x), plain.o(torch.cat(heads, -1)), rtol=1e-4, atol=1e-5)


def test_s7_widths_are_the_backbones():
    for name in ("wav2vec2-tiny", "wavlm-stable-tiny"):
        backbone = make_backbone(name, TOKEN_METHODS["combined"])
        assert backbone.sequence["prompt_deep_prepend"].tokens.shape == (3, 1, 32)
        assert backbone.blocks[0].ffn.lora["down"].A.shape == (2, 64)


# --- how they start -----------------------------------------------------------------------------------------


def test_initial_values():
    """Spec section 5: A and Down Kaiming, B and Up 0; prompts by Glorot's bound; Φ normal."""
    torch.manual_seed(0)
    full = random_backbone("whisper-base")
    adapt(
        full,
        [
            {"name": "lora", "rank": 16},
            {"name": "adapter", "dim": 16},
            {"name": "soft_moa", "dim": 4, "experts": 7},
            {"name": "prompt", "kind": "deep_prepend", "tokens": 5},
            {"name": "prefix", "tokens": 24},
        ],
    )
    block = full.blocks[3]
    lora, adapter, moa = block.attn.lora["q"], block.patches["adapter_ffn"], block.patches["soft_moa_attn"]
    bound = 1 / math.sqrt(512)  # Kaiming uniform with a = sqrt(5): 1 / sqrt(fan in)
    for weight in (lora.A, adapter.down.weight):
        assert 0.98 * bound < weight.abs().max() <= bound
    assert not any(p.any() for p in (lora.B, adapter.up.weight, adapter.up.bias, adapter.down.bias))
    assert moa.phi.detach().std() == pytest.approx(math.sqrt(2 / (7 + 512)), rel=0.05)
    prompts, bound = full.sequence["prompt_deep_prepend"].tokens, math.sqrt(6 / (6 * 512))
    assert 0.98 * bound < prompts.abs().max() <= bound
    keys, bound = block.attn.prefix.keys, math.sqrt(6 / (3 * 512 + 512))  # conv2 makes tokens of 3 x 512 numbers
    assert 0.98 * bound < keys.abs().max() <= bound


def test_bounds_on_ast_are_of_its_patches_of_one_channel():
    backbone = make_backbone("ast-tiny", {"name": "prompt", "kind": "shallow", "tokens": 200})
    bound = math.sqrt(6 / (16 * 16 + 32))
    assert 0.98 * bound < backbone.sequence["prompt_shallow"].tokens.abs().max() <= bound


def test_initial_values_are_those_of_the_seed_and_differ_between_blocks():
    one, same, other = (make_backbone("whisper-nano", IDENTITY_AT_START["lora"], seed) for seed in (0, 0, 1))
    first, again, other_seed = (backbone.blocks[0].attn.lora["q"].A for backbone in (one, same, other))
    assert torch.equal(first, again)
    assert not torch.equal(first, other_seed)
    assert not torch.equal(first, one.blocks[1].attn.lora["q"].A)


def test_dropout_of_adapters_follows_the_mode():
    backbone = perturb(make_backbone("whisper-nano", IDENTITY_AT_START["scaled_parallel"]))
    waveforms, _ = make_clips(0.5)
    assert torch.equal(backbone(waveforms).states[-1], backbone(waveforms).states[-1])
    backbone.train()
    assert not torch.equal(backbone(waveforms).states[-1], backbone(waveforms).states[-1])


# --- what trains, and errors --------------------------------------------------------------------------------


def trainable_names(backbone) -> set[str]:
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def test_parameters_that_tuning_methods_train():
    post = make_backbone("wav2vec2-tiny", {"name": "linear_probe"})
    assert trainable_names(post) == set()  # its blocks end in a norm of their own
    assert trainable_names(make_backbone("ast-tiny", {"name": "linear_probe"})) == {"norm.weight", "norm.bias"}
    assert trainable_names(make_backbone("ast-tiny", {"name": "linear_probe", "final_norm": False})) == set()
    assert all(
        n.startswith(("blocks.2.", "norm."))
        for n in trainable_names(make_backbone("ast-tiny", {"name": "last_k", "k": 1}))
    )
    biases = trainable_names(make_backbone("ast-tiny", {"name": "bitfit"}))
    assert all(n.endswith(".bias") and n.startswith(("blocks", "norm")) for n in biases)
    assert len(biases) == 3 * 8 + 1
    ffn = trainable_names(make_backbone("wav2vec2-tiny", {"name": "layer_norm", "sites": ["ffn"]}))
    assert ffn == {f"blocks.{i}.norm2.{kind}" for i in range(3) for kind in ("weight", "bias")}
    assert all(p.requires_grad for p in make_backbone("wavlm-tiny", {"name": "full"}).parameters())


def test_methods_can_be_put_into_chosen_blocks():
    backbone = make_backbone("whisper-nano", [{"name": "lora", "blocks": [2]}, {**HOULSBY, "blocks": [0, 1]}])
    assert [len(block.patches) for block in backbone.blocks] == [2, 2, 0]
    assert [len(block.attn.lora) for block in backbone.blocks] == [0, 0, 2]


def test_methods_are_kept_complete_with_defaults():
    backbone = make_backbone("whisper-nano", {"name": "lora", "rank": 2})
    assert backbone.methods == [{"name": "lora", "sites": ["q", "v"], "rank": 2, "alpha": 8.0, "blocks": None}]


BAD = [
    ({"name": "lora2"}, "no method is called 'lora2'; one of linear_probe"),
    ({"rank": 2}, "no method is called None"),
    ({"name": "lora", "r": 2}, "lora has no option 'r'; it has sites, rank"),
    ({"name": "lora", "rank": 0}, "rank of lora must be above 0"),
    ({"name": "lora", "sites": ["w"]}, "site of lora must be one of q, k"),
    ({"name": "lora", "sites": []}, "at least one site"),
    ({"name": "lora", "blocks": [3]}, "blocks 0 to 2, not 3"),
    ([{"name": "lora"}, {"name": "lora"}], "two methods add LoRA at 'q'"),
    ({"name": "adapter"}, "needs dim"),
    ({"name": "adapter", "dim": 4, "reduction": 8}, "needs dim"),
    ({"name": "adapter", "reduction": 100}, "dim of adapter must be above 0"),
    ({"name": "adapter", "dim": 4, "block": "mlp"}, "bottleneck, conformer, convpass"),
    ({"name": "adapter", "dim": 4, "placement": "sequential"}, "parallel, before, after"),
    ({"name": "adapter", "dim": 4, "layout": "other"}, "pfeiffer, houlsby"),
    ({"name": "adapter", "dim": 4, "block": "conformer", "kernel": 4}, "must be odd"),
    ([{"name": "adapter", "dim": 4}, {"name": "adapter", "dim": 4}], "two methods add 'adapter_ffn'"),
    ({"name": "scaled_parallel", "reads": "attn.in"}, "ffn.in, stream"),
    ({"name": "post_ffn", "dropout": 1.0}, "below 1"),
    ({"name": "prompt", "kind": "deep"}, "shallow, deep_replace"),
    ([{"name": "prompt"}, {"name": "prompt", "kind": "shallow"}], "two methods add prompts that stay"),
    ({"name": "prefix", "tokens": 3}, "must be even"),
    ({"name": "last_k", "k": 4}, "not -1"),
    ({"name": "layer_norm", "sites": ["last"]}, "attn, ffn, final"),
    ({"name": "soft_moa", "dim": 4, "slots": 0}, "slots of soft_moa must be above 0"),
    ({"name": "soft_moa", "dim": 4, "normalize": "false"}, "normalize of soft_moa = 'false' is not true or false"),
    ({"name": "lora", "rank": "8"}, "rank of lora = '8' is not a whole number"),
    ({"name": "lora", "rank": 8.5}, "rank of lora = 8.5 is not a whole number"),
    ({"name": "lora", "alpha": "8"}, "alpha of lora = '8' is not a number"),
    ({"name": "lora", "sites": "qv"}, "sites of lora = 'qv' is not a list of texts"),
    ({"name": "lora", "blocks": 1}, "blocks of lora = 1 is not a list of whole numbers or none"),
    ({"name": "lora", "blocks": [0.5]}, "blocks of lora = 0.5 is not a whole number"),
    ({"name": "lora", "blocks": []}, "at least one block"),
    ({"name": "layer_norm", "sites": []}, "at least one site"),
    ([{"name": "prompt", "kind": "deep_append"}] * 2, "two methods add deep_append prompts"),
]


@pytest.mark.parametrize(("methods", "message"), BAD)
def test_wrong_methods_are_refused_and_leave_the_backbone_plain(methods, message):
    backbone = make_backbone("whisper-nano")
    before = sorted(backbone.state_dict())
    with pytest.raises(ValueError, match=message):
        adapt(backbone, [{"name": "cls_token"}, *([methods] if isinstance(methods, dict) else methods)])
    assert sorted(backbone.state_dict()) == before
    assert not trainable_names(backbone)
    assert not backbone.methods
    adapt(backbone, {"name": "lora"})


def test_batch_norm_of_a_single_token_uses_running_statistics():
    """In training, BatchNorm has no variance to take of a batch of one clip of one token."""
    backbone = make_backbone("whisper-nano", {"name": "adapter", "block": "conformer", "dim": 4}).train()
    norm = backbone.blocks[0].patches["adapter_ffn"].batch_norm
    for lengths in (None, torch.tensor([300])):
        assert backbone(torch.randn(1, 300), lengths).states[-1].isfinite().all()
    assert not norm.running_mean.any()
    backbone(torch.randn(1, 800))
    assert norm.running_mean.any()


def test_methods_that_do_not_suit_a_backbone_are_refused():
    with pytest.raises(ValueError, match="has a class token of its own"):
        make_backbone("ast-tiny", {"name": "cls_token"})
    with pytest.raises(ValueError, match="no final norm"):
        make_backbone("wav2vec2-tiny", {"name": "layer_norm", "sites": ["final"]})
    backbone = make_backbone("whisper-nano", {"name": "lora"})
    with pytest.raises(RuntimeError, match="adapted already"):
        adapt(backbone, {"name": "bitfit"})


def test_every_method_is_tested_here_and_described():
    tested = {method["name"] for methods in ALL_METHODS.values() for method in methods}
    assert tested == set(METHODS)
    assert all(f"``{name}``" in (adapt.__doc__ or "") for name in METHODS)
