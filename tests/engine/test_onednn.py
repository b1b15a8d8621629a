"""Products by oneDNN: those of PyTorch up to float32's rounding, and where there is no oneDNN, PyTorch's."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
import whisper
from torch.utils.flop_counter import FlopCounterMode
from whisper.model import AudioEncoder

from whisper_at.engine import onednn
from whisper_at.engine.onednn import Linear, attention, attention_by_head, linear, linear_transposed, use_onednn


def random(*shape: int, seed: int = 0, **options) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


@pytest.fixture(autouse=True)
def no_minimum(monkeypatch):
    monkeypatch.setattr(onednn, "MIN_MACS", 1)


def test_little_work_is_pytorchs(calls, monkeypatch):
    monkeypatch.setattr(onednn, "MIN_MACS", 8 * 24 * 10)
    for rows in (7, 8):
        linear(random(rows, 24), random(10, 24))
    assert calls == [(8, 24)]


@pytest.fixture
def calls(monkeypatch):
    """Shapes of what went to oneDNN."""
    if not onednn._supported():
        pytest.skip("this PyTorch has no oneDNN")
    shapes = []
    real = onednn._linear_by_onednn
    monkeypatch.setattr(onednn, "_linear_by_onednn", lambda *args: shapes.append(tuple(args[0].shape)) or real(*args))
    return shapes


def close(found: torch.Tensor, exact: torch.Tensor) -> None:
    assert found.shape == exact.shape
    assert found.dtype == torch.float32
    largest = float(exact.abs().max()) if exact.numel() else 0.0
    torch.testing.assert_close(found.double(), exact.double(), rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("shape", [(4, 24), (1500, 64), (2, 3, 5, 24), (7, 1), (1, 24), (24,), (0, 24), (3, 0)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_pytorchs(shape, bias):
    x, weight = random(*shape), random(10, shape[-1], seed=1)
    b = random(10, seed=2) if bias else None
    close(linear(x, weight, b), F.linear(x.double(), weight.double(), None if b is None else b.double()))


def test_any_layout_and_changed_weights(calls):
    x, weight = random(24, 50).t(), random(24, 10).t()
    close(linear(x, weight), x.double() @ weight.double().t())
    weight.mul_(2)  # nothing of it was kept
    close(linear(x, weight), x.double() @ weight.double().t())
    close(linear(x[::2], weight[1:]), x[::2].double() @ weight[1:].double().t())
    assert calls == [(50, 24), (50, 24), (25, 24)]


def test_what_is_not_float32_or_under_autocast_is_pytorchs(calls):
    x, weight = random(8, 24), random(10, 24, seed=1)
    for kind in (torch.float64, torch.bfloat16):
        assert torch.equal(linear(x.to(kind), weight.to(kind)), F.linear(x.to(kind), weight.to(kind)))
    with pytest.raises(RuntimeError):
        linear(x, weight.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    assert not calls


@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "x weight bias"])
def test_numbers_do_not_depend_on_gradients(calls, wanted):
    """Recording gradients changes no digit, and the gradients are PyTorch's, the second ones too."""
    operands = {"x": random(2, 8, 24), "weight": random(10, 24, seed=1), "bias": random(10, seed=2)}
    with torch.no_grad():
        expected = linear(*operands.values())
    for name in wanted.split():
        operands[name].requires_grad_()
    found = linear(*operands.values())
    assert torch.equal(found, expected)
    assert calls == [(2, 8, 24)] * 2
    inputs = [operands[name] for name in wanted.split()]
    gradients = torch.autograd.grad(found.square().sum(), inputs, create_graph=True)
    reference = torch.autograd.grad(F.linear(*operands.values()).square().sum(), inputs, create_graph=True)
    for one, other in zip(gradients, reference):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    second = torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs)
    for one, other in zip(second, torch.autograd.grad(sum(g.square().sum() for g in reference), inputs)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-2)


def test_linear_transposed():
    x, weight = random(3, 50, 24), random(10, 24, seed=1)
    close(linear_transposed(weight, x), weight.double() @ x.double().transpose(1, 2))
    assert torch.equal(
        linear_transposed(weight.bfloat16(), x.bfloat16()), weight.bfloat16() @ x.bfloat16().transpose(1, 2)
    )


@pytest.mark.parametrize("n", [3, onednn.CHUNK_ROWS, onednn.CHUNK_ROWS + 1])
def test_attention(n):
    query, key, value = (random(2, n, 3, 16, seed=seed).transpose(1, 2) for seed in range(3))
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    close(attention_by_head(query, key, value), exact)
    learned = query.clone().requires_grad_()
    attention_by_head(learned, key, value).square().sum().backward()
    again = query.clone().requires_grad_()
    F.scaled_dot_product_attention(again, key, value).square().sum().backward()
    torch.testing.assert_close(learned.grad, again.grad, rtol=1e-4, atol=1e-5)


def test_attention_chooses(calls):
    n = onednn.MIN_ROWS
    few, long = random(1, 2, 3, 16), random(1, 2, n, 16)
    mask = torch.zeros(n, n).masked_fill_(torch.ones(n, n).triu(1).bool(), -float("inf"))
    masked = F.scaled_dot_product_attention(*[long.double()] * 3, mask.double())
    close(attention(long, long, long, mask), masked)
    attention(few, few, few)  # not worth it
    assert not calls
    close(attention(long, long, long), F.scaled_dot_product_attention(*[long.double()] * 3))
    assert len(calls) == 2 * 2  # scores and mixtures of two heads


def test_layers_are_replaced(calls):
    """Names, state, copies and gradients stay; and the products are PyTorch's where it counts or compiles them."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(24, 10), whisper.model.Linear(10, 5, bias=False), torch.nn.GELU())
    x, before, parameters = random(8, 24), dict(module.state_dict()), dict(module.named_parameters())
    module[1].eval()
    with torch.no_grad():
        expected = module(x)
        use_onednn(module)
        assert [type(part) for part in module] == [Linear, Linear, torch.nn.GELU]
        assert [part.training for part in module] == [True, False, True]
        assert all(parameter is parameters[name] for name, parameter in module.named_parameters())
        assert {(part.in_features, part.out_features) for part in module[:2]} == {(24, 10), (10, 5)}
        assert not calls
        close(module(x), expected)
        close(copy.deepcopy(module)(x), expected)
        close(pickle.loads(pickle.dumps(module))(x), expected)
        assert calls == [(8, 24), (8, 10)] * 3
        with FlopCounterMode(display=False) as counter:
            module(x)
        assert counter.get_total_flops() == 2 * 8 * (24 * 10 + 10 * 5)
        torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(x), expected)
        assert module(x.bfloat16()).dtype == torch.bfloat16  # as openai-whisper's layer, in the precision of x
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    module(x).sum().backward()
    assert module[0].weight.grad is not None
    assert len(calls) == 8


def test_layers_with_hooks_or_methods_of_their_own_stay():
    class Louder(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    hooked, patched, saved = (torch.nn.Linear(3, 3) for _ in range(3))
    hooked.register_forward_hook(lambda *_: None)
    saved.register_state_dict_pre_hook(lambda *_: None)
    patched.forward = lambda x: x
    scaled = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 3))
    parts = [Louder(3, 3), hooked, patched, saved, scaled]
    module = torch.nn.Sequential(*parts)
    use_onednn(module)
    assert all(now is before for now, before in zip(module, parts))


def test_a_layer_in_two_places_stays_one_layer():
    layer = torch.nn.Linear(3, 3)
    module = torch.nn.ModuleDict({"one": layer, "two": layer, "inner": torch.nn.Sequential(layer)})
    use_onednn(module)
    assert type(module["one"]) is Linear
    assert module["one"] is module["two"]
    assert module["one"] is module["inner"][0]
    assert module["one"].weight is layer.weight


def test_without_onednn(monkeypatch):
    """Another build of PyTorch: the same numbers from its own products."""

    def missing(*_):
        raise NotImplementedError("no such operator")

    monkeypatch.setattr(onednn, "_linear_by_onednn", missing)
    onednn._supported.cache_clear()
    try:
        x, weight = random(8, 24), random(10, 24, seed=1)
        assert torch.equal(linear(x, weight), F.linear(x, weight))
        long = random(1, 2, onednn.MIN_ROWS, 16)
        assert torch.equal(attention(long, long, long), F.scaled_dot_product_attention(long, long, long))
    finally:
        onednn._supported.cache_clear()


def test_an_encoder_is_as_near_to_exact_numbers(model_en, upstream_en, monkeypatch, calls):
    """The encoder's features are hardly further from those in float64 than openai-whisper's are."""
    mel = random(1, 80, 3000)
    with torch.no_grad():
        upstream, found = upstream_en.encoder(mel), model_en.embed_audio(mel)
        monkeypatch.setattr("whisper.model.LayerNorm.forward", torch.nn.LayerNorm.forward)
        dims = model_en.dims
        double = AudioEncoder(80, 1500, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer).double()
        double.load_state_dict(model_en.encoder.state_dict())
        exact = double(mel.double())
    distance = [float((numbers - exact).square().mean().sqrt()) for numbers in (upstream, found)]
    assert calls
    assert 0 < distance[1] < 1.5 * distance[0]
