"""VGGish and CNN14: layers against closed formulas, published layouts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import torch

from whisper_at.checkpoints import save_safetensors
from whisper_at.embed.cnn14 import CNN14, load_cnn14
from whisper_at.embed.frontends import slaney_mel_filters
from whisper_at.embed.fusion import load_network
from whisper_at.embed.vggish import VGGish, load_vggish


def test_vggish_convolution_and_flattening_against_formulas():
    """The fully connected layers read (time, frequency, channel), as the published weights expect."""
    model = load_network("vggish", "random")
    x = torch.rand(1, 1, 96, 64)
    first = model.features[0]
    with torch.no_grad():
        maps = model.feature_maps(x, [1, 14])
        expected = scipy.signal.correlate2d(x[0, 0].numpy(), first.weight[5, 0].numpy(), "same") + first.bias[5].item()
        np.testing.assert_allclose(maps[1][0, 5].numpy(), np.maximum(expected, 0), atol=1e-5)

        t, f, c = 4, 2, 77
        model.embeddings[0].weight.zero_()
        model.embeddings[0].bias.zero_()
        model.embeddings[0].weight[3, (t * 4 + f) * 512 + c] = 1.0
        picked = model.feature_maps(x, [14, 17])
        pooled = picked[14][0, c, 2 * t : 2 * t + 2, 2 * f : 2 * f + 2].max()
        assert picked[17][0, 3] == pooled
        assert not picked[17][0, :3].any()


@pytest.fixture(scope="module")
def cnn14():
    return load_network("cnn14", "random")


def test_cnn14_block_against_formulas(cnn14):
    model = cnn14
    x = torch.randn(1, 1, 32, 64)
    with torch.no_grad():
        model.bn0.running_mean[:] = torch.randn(64)
        model.bn0.running_var[:] = torch.rand(64) + 0.5
        found = model.feature_maps(x, [0])[0]
    normed = (x[0, 0] - model.bn0.running_mean) / (model.bn0.running_var + 1e-5).sqrt()
    block, scale = model.conv_block1, 1 / math.sqrt(1 + 1e-5)  # fresh BatchNorm: mean 0, variance 1
    hidden = [
        np.maximum(scipy.signal.correlate2d(normed.numpy(), kernel[0].numpy(), "same") * scale, 0)
        for kernel in block.conv1.weight.detach()
    ]
    kernels = block.conv2.weight.detach()[9].numpy()
    second = np.maximum(sum(scipy.signal.correlate2d(h, k, "same") for h, k in zip(hidden, kernels)) * scale, 0)
    pooled = second.reshape(16, 2, 32, 2).mean((1, 3))
    np.testing.assert_allclose(found[0, 9].numpy(), pooled, atol=1e-5)


def test_cnn14_embedding_and_logits(cnn14):
    model, x = cnn14, torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        last = model.feature_maps(x, [5])[5].mean(3)
        hidden = torch.relu((last.mean(2) + last.amax(2)) @ model.fc1.weight.T + model.fc1.bias)
        torch.testing.assert_close(model.embedding(x), hidden)
        logits = hidden @ model.fc_audioset.weight.T + model.fc_audioset.bias
        torch.testing.assert_close(model.clipwise_logits(x), logits)


def numbered_state(network_class):
    """A state dict of the right names and shapes, each tensor filled with its number; small once saved."""
    with torch.device("meta"):
        state = network_class().state_dict()
    return {
        name: torch.full((1,) * like.ndim, i, dtype=like.dtype).expand(like.shape)
        for i, (name, like) in enumerate(state.items())
    }


@pytest.mark.parametrize("layout", ["taylor.pth", "tcvrick.pth", "ours.safetensors"])
def test_vggish_layouts_load_by_name(tmp_path, layout):
    state = numbered_state(VGGish)
    assert {"features.0.weight", "features.13.bias", "embeddings.0.weight", "embeddings.4.bias"} <= state.keys()
    assert len(state) == 18
    assert state["embeddings.0.weight"].shape == (4096, 12288)
    path = tmp_path / layout
    if layout.startswith("ours"):
        save_safetensors(state, path)
    elif layout.startswith("taylor"):
        torch.save(state | {"pproc.pca_means": torch.zeros(128, 1)}, path)
    else:
        torch.save({name.replace("embeddings", "fc"): tensor for name, tensor in state.items()}, path)
    loaded = load_vggish(path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_cnn14_layout_loads_by_name(tmp_path):
    state = numbered_state(CNN14)
    assert {"bn0.running_var", "conv_block1.conv1.weight", "conv_block6.bn2.bias", "fc1.weight"} <= state.keys()
    assert state["fc_audioset.weight"].shape == (527, 2048)
    front = {
        "spectrogram_extractor.stft.conv_real.weight": torch.zeros(257, 1, 512),
        "spectrogram_extractor.stft.conv_imag.weight": torch.zeros(257, 1, 512),
        "logmel_extractor.melW": torch.from_numpy(slaney_mel_filters()).float(),
    }
    path = tmp_path / "Cnn14_16k.pth"
    torch.save({"iteration": 5, "model": state | front}, path)
    loaded = load_cnn14(path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())

    torch.save({"model": state | front | {"logmel_extractor.melW": torch.zeros(513, 64)}}, path)
    with pytest.raises(ValueError, match="CNN14 for 32 kHz"):
        load_cnn14(path)
    torch.save({"model": state | front | {"logmel_extractor.melW": torch.zeros(257, 64)}}, path)
    with pytest.raises(ValueError, match="another filter bank"):
        load_cnn14(path)


def test_wrong_files_say_so(tmp_path):
    path = tmp_path / "wrong.pth"
    with pytest.raises(FileNotFoundError, match="no such file of VGGish's weights"):
        load_vggish(path)
    torch.save({"encoder.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="is not VGGish: .* published at"):
        load_vggish(path)
    with pytest.raises(ValueError, match="is not CNN14: .* published at"):
        load_cnn14(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="no tensors by name"):
        load_cnn14(path)
    path.write_text("not found")
    with pytest.raises(RuntimeError, match="text file"):
        load_cnn14(path)
    torch.save(np.random.default_rng(0), path)
    with pytest.raises(RuntimeError, match="refused"):
        load_vggish(path)
