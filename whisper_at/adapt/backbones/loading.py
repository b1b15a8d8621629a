"""Load pretrained encoders as backbones.

Whisper is openai-whisper's; AST, wav2vec 2.0, HuBERT, WavLM and MMS come through ``transformers``. The pretrained
modules and weights are used as they are; `Block` defines how they are connected.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from whisper.model import AudioEncoder, Conv1d

from ... import checkpoints
from ...checkpoints import check_folder, hub
from ...checkpoints.files import read_json
from .backbone import Backbone
from .blocks import Attention, Block, FeedForward, RelativeBias, WhisperLayerNorm, share_frozen
from .configs import CONFIG_NAMES, TRANSFORMERS_CONFIGS, WHISPER_CONFIGS
from .frontends import ASTFrontEnd, Wav2Vec2FrontEnd, WhisperFrontEnd

HUB_IDS = {
    "ast": "MIT/ast-finetuned-audioset-10-10-0.4593",
    "wav2vec2": "facebook/wav2vec2-base-960h",
    "hubert": "facebook/hubert-base-ls960",
    "wavlm-base": "microsoft/wavlm-base",
    "wavlm-base-plus": "microsoft/wavlm-base-plus",
    "wavlm-large": "microsoft/wavlm-large",
    "mms-300m": "facebook/mms-300m",
}
"""Short names of backbones on the Hugging Face hub; others of these families go by their ids."""

CLASS_PREFIXES = {
    "audio-spectrogram-transformer": "AST",
    "wav2vec2": "Wav2Vec2",
    "hubert": "Hubert",
    "wavlm": "WavLM",
}
"""``model_type`` in config.json → prefix of the classes in transformers, for the families that load through it."""

RANDOM_PREFIX = "random:"
"""Prefix of the name of a backbone with random weights."""


def load_backbone(
    name: str | os.PathLike[str],
    device: str | torch.device | None = None,
    *,
    frames: int | None = None,
    normalize: bool | None = None,
    download_root: str | None = None,
) -> Backbone:
    """Load a pretrained encoder, frozen, in float32.

    Parameters
    ----------
    name : str or path
        A Whisper by any name, path or hub id that `whisper_at.load_model` takes (``base``, ``nano.en``, a file, a
        folder); ``ast``, ``wav2vec2``, ``hubert``, ``wavlm-base``, ``wavlm-base-plus``, ``wavlm-large``, ``mms-300m``;
        the hub id of another AST, wav2vec 2.0, HuBERT, WavLM or MMS; a folder in Hugging Face's layout; or ``random:``
        and one of `CONFIG_NAMES`, whose weights are always the same random numbers.
    device : str or torch.device, optional
        Where to put it; by default CUDA if there is any, else the CPU.
    frames : int, optional
        AST only: number of 10 ms frames that every clip is cut or padded to, by default the 1024 of its training. The
        positional table is cropped or interpolated (defect P1).
    normalize : bool, optional
        wav2vec 2.0, HuBERT and WavLM only: whether each clip is brought to mean 0 and variance 1. By default what the
        model's preprocessor_config.json says, and True without that file (defect S10).
    download_root : str, optional
        Whisper only: folder of downloaded files, as in `whisper_at.load_model`.

    Returns
    -------
    Backbone

    Raises
    ------
    RuntimeError
        If there is no such model, it is of another family, weights are missing, or transformers is needed and missing.
    ValueError
        If an option does not apply to the model.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    name = os.fspath(name)
    if name.startswith(RANDOM_PREFIX):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            backbone = random_backbone(name.removeprefix(RANDOM_PREFIX), frames=frames, normalize=normalize)
        backbone.name = name
        return backbone.to(device)
    source = HUB_IDS.get(name, name)
    model_type = _find_model_type(source)
    _check_options(name, model_type, frames, normalize)
    if model_type == "whisper":
        return whisper_backbone(_load_whisper_encoder(source, download_root), name).to(device)
    model = _load_transformers_model(source, model_type)
    if normalize is None and model_type != "audio-spectrogram-transformer":
        normalize = _read_do_normalize(source)
    return transformers_backbone(model, name, frames=frames, normalize=bool(normalize)).to(device)


def random_backbone(
    name: str,
    *,
    frames: int | None = None,
    normalize: bool | None = None,
    device: str | torch.device = "cpu",
) -> Backbone:
    """Make a backbone of known sizes with random weights.

    Parameters
    ----------
    name : str
        One of `CONFIG_NAMES`.
    frames, normalize : optional
        As in `load_backbone`; clips are normalised by default.
    device : str or torch.device
        Where to put it; on ``meta`` it has no weights, for counting parameters.

    Returns
    -------
    Backbone

    Raises
    ------
    ValueError
        If there is no such name, or an option does not apply to the model.
    """
    if name in WHISPER_CONFIGS:
        _check_options(name, "whisper", frames, normalize)
        with torch.device(device):
            return whisper_backbone(AudioEncoder(**WHISPER_CONFIGS[name]), name)
    if name not in TRANSFORMERS_CONFIGS:
        raise ValueError(f"the sizes of {name!r} are not known; choose one of {', '.join(CONFIG_NAMES)}")
    prefix, options = TRANSFORMERS_CONFIGS[name]
    transformers = _import_transformers()
    config = getattr(transformers, f"{prefix}Config")(**options)
    _check_options(name, config.model_type, frames, normalize)
    with torch.device(device):
        model = getattr(transformers, f"{prefix}Model")(config)
        return transformers_backbone(model, name, frames=frames, normalize=normalize is not False)


def whisper_backbone(encoder: AudioEncoder, name: str = "whisper") -> Backbone:
    """Make a backbone from an openai-whisper encoder, such as ``load_model("base").encoder``.

    The weights are shared, not copied, and never change: a parameter that a method trains is copied first.
    """
    blocks = []
    for layer in encoder.blocks:
        a, (up, activation, down) = layer.attn, layer.mlp
        attn = Attention(a.query, a.key, a.value, a.out, a.n_head)
        ffn = FeedForward(up, down, activation)
        blocks.append(Block(attn, ffn, _whisper_norm(layer.attn_ln), _whisper_norm(layer.mlp_ln), pre_norm=True))
    convolutions = (_whisper_conv(encoder.conv1), _whisper_conv(encoder.conv2))
    front = WhisperFrontEnd(*convolutions, encoder.positional_embedding)
    return Backbone(name, "whisper", front, blocks, _whisper_norm(encoder.ln_post))


def _whisper_norm(norm: nn.LayerNorm) -> WhisperLayerNorm:
    return share_frozen(norm, WhisperLayerNorm(norm.normalized_shape, norm.eps, device="meta"))


def _whisper_conv(conv: Conv1d) -> Conv1d:
    sizes = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    return share_frozen(conv, Conv1d(*sizes, device="meta"))


def transformers_backbone(model: Any, name: str, *, frames: int | None = None, normalize: bool = True) -> Backbone:
    """Make a backbone from transformers' ASTModel, Wav2Vec2Model, HubertModel or WavLMModel.

    The model's modules and weights are used, not copied. See `load_backbone` for the options.
    """
    config = model.config
    if config.model_type == "audio-spectrogram-transformer":
        blocks = [_ast_block(layer) for layer in model.layers]
        return Backbone(name, "ast", ASTFrontEnd(model.embeddings, frames), blocks, model.layernorm)
    if getattr(config, "add_adapter", False):
        raise RuntimeError(f"{name} ends in an adapter that shortens its output; give the model without it")
    layers, pre_norm = model.encoder.layers, config.do_stable_layer_norm
    blocks = [_speech_block(layer, pre_norm) for layer in layers]
    relative = None
    if config.model_type == "wavlm":
        relative = RelativeBias(layers[0].attention.rel_attn_embed, config.max_bucket_distance)
    norm = model.encoder.layer_norm if pre_norm else None
    return Backbone(name, config.model_type, Wav2Vec2FrontEnd(model, normalize), blocks, norm, relative)


def _ast_block(layer: Any) -> Block:
    a, mlp = layer.attention, layer.mlp
    attn = Attention(a.q_proj, a.k_proj, a.v_proj, a.o_proj, a.num_attention_heads)
    ffn = FeedForward(mlp.fc1, mlp.fc2, mlp.activation_fn)
    return Block(attn, ffn, layer.layernorm_before, layer.layernorm_after, pre_norm=True)


def _speech_block(layer: Any, pre_norm: bool) -> Block:
    a, f = layer.attention, layer.feed_forward
    gate, gate_scale = getattr(a, "gru_rel_pos_linear", None), getattr(a, "gru_rel_pos_const", None)
    attn = Attention(a.q_proj, a.k_proj, a.v_proj, a.out_proj, a.num_heads, gate, gate_scale)
    ffn = FeedForward(f.intermediate_dense, f.output_dense, f.intermediate_act_fn)
    language = getattr(layer, "adapter_layer", None)
    return Block(attn, ffn, layer.layer_norm, layer.final_layer_norm, pre_norm, language)


# --- files and the hub --------------------------------------------------------------------------------------


def _check_options(name: str, model_type: str, frames: int | None, normalize: bool | None) -> None:
    """Raise ValueError for an option that does not apply to a type of model."""
    if frames is not None and model_type != "audio-spectrogram-transformer":
        raise ValueError(f"frames is for AST; {name} takes clips of any length")
    if normalize is not None and model_type in ("audio-spectrogram-transformer", "whisper"):
        raise ValueError(f"normalize is for wav2vec 2.0, HuBERT and WavLM; {name} has another front end")


def _find_model_type(source: str) -> str:
    """Return ``whisper`` or a key of `CLASS_PREFIXES`."""
    path = Path(source).expanduser()
    if source in checkpoints.available_models() or path.is_file():
        return "whisper"
    model_type: str
    if path.is_dir():
        check_folder(path)
        config = path / "config.json"
        model_type = read_json(config).get("model_type", "whisper") if config.is_file() else "whisper"
    elif hub.is_hub_id(source):
        model_type = _from_pretrained("AutoConfig", source).model_type
    else:
        known = ", ".join([*checkpoints.available_models(), *HUB_IDS])
        raise RuntimeError(f"Backbone {source!r} not found: it is no file, folder or hub id, and none of {known}")
    if model_type != "whisper" and model_type not in CLASS_PREFIXES:
        raise RuntimeError(f"{source} is a {model_type!r}; backbones are Whisper, {', '.join(CLASS_PREFIXES.values())}")
    return model_type


def _load_whisper_encoder(source: str, download_root: str | None) -> AudioEncoder:
    dims, state = checkpoints.open_whisper(checkpoints.find_whisper(source, download_root), download_root=download_root)
    sizes = (dims[key] for key in ("n_mels", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"))
    encoder = AudioEncoder(*sizes)
    prefix = "encoder."
    encoder.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return encoder


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise RuntimeError(
            "AST, wav2vec 2.0, HuBERT and WavLM come through transformers: pip install transformers, or take a Whisper"
        ) from None
    return transformers


def _from_pretrained(class_name: str, source: str, **options: Any) -> Any:
    """Call ``from_pretrained`` of a class of transformers; RuntimeError if the source cannot be loaded."""
    try:
        return getattr(_import_transformers(), class_name).from_pretrained(source, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RuntimeError(
            f"Backbone {source!r} cannot be loaded ({reason}); give the folder of a downloaded copy, with config.json "
            "and model.safetensors"
        ) from error


def _load_transformers_model(source: str, model_type: str) -> Any:
    """Load a model in float32; RuntimeError if its files lack a weight, which would be a random number."""
    class_name = f"{CLASS_PREFIXES[model_type]}Model"
    model, report = _from_pretrained(class_name, source, dtype=torch.float32, output_loading_info=True)
    missing = sorted(set(report["missing_keys"]) - {"masked_spec_embed"})  # SpecAugment's vector is not used here
    mismatched = sorted(str(entry) for entry in report["mismatched_keys"])
    if missing or mismatched:
        first = (missing + mismatched)[0]
        raise RuntimeError(f"{source} lacks weights of its architecture: {first} ({len(missing + mismatched)} such)")
    return model


def _read_do_normalize(source: str) -> bool:
    """Return ``do_normalize`` of preprocessor_config.json, or transformers' default if there is no such file."""
    try:
        settings, _ = _import_transformers().Wav2Vec2FeatureExtractor.get_feature_extractor_dict(source)
    except OSError:
        return True
    return bool(settings.get("do_normalize", True))
