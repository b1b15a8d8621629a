"""Pretrained encoders of speech and sound, seen alike: a front end, L blocks, a last norm.

Whisper is openai-whisper's; AST, wav2vec 2.0, HuBERT, WavLM and MMS come through ``transformers``. The pretrained
modules are taken as they are; `Block` spells how they follow each other, so that methods can add to it at named places.
A backbone is frozen, and computes the same for a clip alone, in a batch, and padded.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whisper.model import AudioEncoder

from .. import checkpoints
from ..checkpoints import huggingface
from .blocks import Attention, Block, FeedForward, RelativeBias
from .configs import CONFIGS as _CONFIGS
from .configs import RANDOM_NAMES, WHISPERS
from .frontends import SAMPLE_RATE, ASTFront, Front, SpeechFront, WhisperFront

HUB_IDS = {
    "ast": "MIT/ast-finetuned-audioset-10-10-0.4593",
    "wav2vec2": "facebook/wav2vec2-base-960h",
    "hubert": "facebook/hubert-base-ls960",
    "wavlm-base": "microsoft/wavlm-base",
    "wavlm-base-plus": "microsoft/wavlm-base-plus",
    "wavlm-large": "microsoft/wavlm-large",
    "mms-300m": "facebook/mms-300m",
}
"""Short names of backbones on the Hugging Face hub; any other of these kinds goes by its id."""

KINDS = {"audio-spectrogram-transformer": "AST", "wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}
"""Kinds of model that load through transformers: `model_type` of config.json → start of the class's name."""


RANDOM = "random:"
"""What the name of a backbone with random weights begins with."""


class Hidden(NamedTuple):
    """What a backbone gives for a batch.

    states : L+1 tensors ``(batch, tokens, dim)``: input of the first block, then every block's output, the last one
        after the encoder's final norm where the family has one
    mask : bool ``(batch, tokens)``, the tokens that are real and not padding
    special : tokens at the front that are not of the sound (CLS, DIST)
    prompts : where prompts lie among the tokens, if a method leaves them there, or None
    """

    states: tuple[Tensor, ...]
    mask: Tensor
    special: int
    prompts: slice | None = None


class Tokens(NamedTuple):
    """A sequence on its way to the blocks: ``values (batch, tokens, dim)``, and mask, special, prompts of `Hidden`."""

    values: Tensor
    mask: Tensor
    special: int
    prompts: slice | None = None


class Backbone(nn.Module):
    """A frozen encoder, and what `whisper_at.adapt.methods.adapt` has put into it.

    Attributes
    ----------
    name : what it was loaded by
    family : ``whisper``, ``ast``, ``wav2vec2``, ``hubert`` or ``wavlm``
    width : of a token (D)
    layers : number of blocks (L)
    sample_rate : of the waveforms, 16000
    frame_rate : tokens per second, or None for AST
    front, blocks, norm : its parts; `norm` is None where blocks normalise their own output (wav2vec 2.0 base …)
    relative : WavLM's relative bias, or None
    sequence : methods that add tokens, in the order in which they were given
    methods : what `adapt` was given, complete with defaults; empty for the plain encoder
    declared_norms : parameters of pretrained LayerNorms that a method let train as such
    """

    front: Front
    blocks: nn.ModuleList
    norm: nn.LayerNorm | None

    def __init__(
        self,
        name: str,
        family: str,
        front: Front,
        blocks: list[Block],
        norm: nn.LayerNorm | None,
        relative: RelativeBias | None = None,
    ):
        super().__init__()
        self.name, self.family, self.sample_rate = name, family, SAMPLE_RATE
        self.front, self.blocks, self.norm, self.relative = front, nn.ModuleList(blocks), norm, relative
        self.sequence = nn.ModuleDict()
        self.methods: list[dict[str, Any]] = []
        self.declared_norms: set[str] = set()
        self.requires_grad_(False).eval()
        for module in self.modules():  # statistics of pretrained parts are constants: no checkpoint holds them (S2)
            module._non_persistent_buffers_set.update(module._buffers)

    @property
    def width(self) -> int:
        return cast(Block, self.blocks[0]).attn.o.out_features

    @property
    def layers(self) -> int:
        return len(self.blocks)

    @property
    def frame_rate(self) -> float | None:
        return self.front.frame_rate

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Hidden:
        """Hidden states of a batch of clips.

        Parameters
        ----------
        waveforms : float32 ``(batch, samples)`` at 16 kHz; what lies past a clip's end does not matter
        lengths : int ``(batch,)``, the samples of each clip; None if all are as long as the batch. A clip that was
            padded on purpose (Whisper's 30 s of WhisPAr) is given with its padding as a part of it.

        Raises
        ------
        ValueError
            If a clip is too short to make a token, longer than Whisper's 30 s, or said to be longer than the batch.
        """
        if waveforms.ndim != 2:
            raise ValueError(f"waveforms must have shape (batch, samples), not {tuple(waveforms.shape)}")
        samples = waveforms.shape[1]
        if lengths is None:
            self._require(samples, samples, samples)
            sizes = torch.full((len(waveforms),), samples, device=waveforms.device)
        else:
            sizes = lengths.to(waveforms.device)
            if sizes.device.type != "meta":
                self._require(int(sizes.min()), int(sizes.max()), samples)
        values, mask = self.front(waveforms, sizes)
        return self.encode(values, mask, padded=lengths is not None)

    def _require(self, shortest: int, longest: int, samples: int) -> None:
        if longest > samples:
            raise ValueError(f"lengths says {longest} samples where waveforms have {samples}; pad them, or mend it")
        if shortest < self.front.least:
            raise ValueError(
                f"a clip has {shortest} samples, but {self.name} needs at least {self.front.least} for one token; "
                "leave it out, or pad it and count the padding"
            )
        if self.front.most is not None and longest > self.front.most:
            seconds = (self.front.most + 1) / self.sample_rate
            raise ValueError(f"a clip has {longest} samples, but {self.name} hears at most {seconds:g} s; cut it")

    def start(self, values: Tensor, mask: Tensor) -> Tokens:
        """The sequence that goes into the first block: the front end's tokens, and what methods add to them."""
        tokens = Tokens(values, mask, self.front.special)
        for patch in cast(Any, self.sequence.values()):
            tokens = patch.start(tokens)
        return tokens

    def encode(self, values: Tensor, mask: Tensor, padded: bool = True) -> Hidden:
        """Hidden states from the tokens ``(batch, tokens, dim)`` and mask that the front end makes.

        `padded` says that the mask may be False somewhere; without it, attention goes unmasked, which is faster.
        """
        tokens = self.start(values, mask)
        patches: list[Any] = list(self.sequence.values())
        states = [tokens.values]
        bias: Tensor | None = None
        for i, block in enumerate(self.blocks):
            inner = tokens
            for patch in patches:
                inner = patch.before(i, inner)
            size = inner.values.shape[1]
            if self.relative is not None and (bias is None or bias.shape[-1] != size):
                bias = self.relative(size)
            inner = inner._replace(values=block(inner.values, inner.mask if padded else None, bias))
            for patch in reversed(patches):
                inner = patch.after(i, inner)
            tokens = tokens._replace(values=inner.values)
            states.append(tokens.values)
        if self.norm is not None:
            states[-1] = self.norm(states[-1])
        return Hidden(tuple(states), tokens.mask, tokens.special, tokens.prompts)


# --- loading ------------------------------------------------------------------------------------------------


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
    name : a Whisper by any name, path or hub id that `whisper_at.load_model` takes (``base``, ``nano.en``, a file, a
        folder); ``ast``, ``wav2vec2``, ``hubert``, ``wavlm-base``, ``wavlm-base-plus``, ``wavlm-large``, ``mms-300m``;
        the id of another AST, wav2vec 2.0, HuBERT, WavLM or MMS on the hub; a folder in Hugging Face's layout; or
        ``random:`` and one of `RANDOM_NAMES`, whose weights are always the same random numbers
    device : where to put it; CUDA if there is any, else the CPU
    frames : AST only: frames of 10 ms that every clip is cut or padded to; those it was trained with (1024) by
        default. The positional table is cropped or interpolated (defect P1).
    normalize : wav2vec 2.0, HuBERT, WavLM: whether each clip is brought to mean 0 and variance 1; by default as the
        model's preprocessor_config.json says, and yes if there is none (defect S10)
    download_root : Whisper only: folder of downloaded files, as of `whisper_at.load_model`

    Raises
    ------
    RuntimeError
        If there is no such model, it is of another kind, weights are missing, or transformers is needed and missing.
    ValueError
        If an option is given to a model that has no use for it.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    name = os.fspath(name)
    if name.startswith(RANDOM):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            backbone = random_backbone(name.removeprefix(RANDOM), frames=frames, normalize=normalize)
        backbone.name = name
        return backbone.to(device)
    source = HUB_IDS.get(name, name)
    kind = _kind_of(source)
    _refuse_options(name, KINDS.get(kind, kind), frames, normalize)
    if kind == "whisper":
        dims, state = checkpoints.open_whisper(checkpoints.find_whisper(source, download_root))
        encoder = AudioEncoder(*_audio_sizes(dims))
        prefix = "encoder."
        encoder.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        return whisper_backbone(encoder, name).to(device)
    model = _pretrained(source, kind)
    if kind != "audio-spectrogram-transformer" and normalize is None:
        normalize = _normalizes(source)
    return transformers_backbone(model, name, frames=frames, normalize=bool(normalize)).to(device)


class WhisperNorm(nn.LayerNorm):
    """openai-whisper's LayerNorm, in float32 whatever it reads, with a weight and a bias of any precision."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


def whisper_backbone(encoder: AudioEncoder, name: str = "whisper") -> Backbone:
    """The backbone of an openai-whisper encoder, such as ``load_model("base").encoder``, on the same weights.

    The weights are shared, not copied, and stay as they are whatever is adapted: parameters that a method trains are
    copied first.
    """

    def own(module: nn.Module) -> Any:
        """The same module with parameters of its own over the same numbers."""
        twin = copy.copy(module)
        twin._parameters = {
            key: None if p is None else nn.Parameter(p.detach(), requires_grad=False)
            for key, p in module._parameters.items()
        }
        return twin

    def norm(module: nn.LayerNorm) -> WhisperNorm:
        twin = own(module)
        twin.__class__ = WhisperNorm  # the same but for weights of half precision
        return cast(WhisperNorm, twin)

    blocks = []
    for layer in cast(Any, encoder.blocks):
        a, (up, activation, down) = layer.attn, layer.mlp
        attn = Attention(own(a.query), own(a.key), own(a.value), own(a.out), a.n_head)
        ffn = FeedForward(own(up), own(down), activation)
        blocks.append(Block(attn, ffn, norm(layer.attn_ln), norm(layer.mlp_ln), pre_norm=True))
    positions = cast(Tensor, encoder.positional_embedding)
    front = WhisperFront(own(encoder.conv1), own(encoder.conv2), positions)
    return Backbone(name, "whisper", front, blocks, norm(encoder.ln_post))


def transformers_backbone(model: Any, name: str, *, frames: int | None = None, normalize: bool = True) -> Backbone:
    """The backbone of a transformers ASTModel, Wav2Vec2Model, HubertModel or WavLMModel, whose modules it takes.

    See `load_backbone` for the options.
    """
    config = model.config
    if config.model_type == "audio-spectrogram-transformer":
        blocks = [_ast_block(layer) for layer in model.layers]
        return Backbone(name, "ast", ASTFront(model.embeddings, frames), blocks, model.layernorm)
    if getattr(config, "add_adapter", False):
        raise RuntimeError(f"{name} ends in an adapter that shortens its output; give the model without it")
    layers = model.encoder.layers
    stable = config.do_stable_layer_norm
    blocks = [_speech_block(layer, stable) for layer in layers]
    relative = None
    if config.model_type == "wavlm":
        relative = RelativeBias(layers[0].attention.rel_attn_embed, config.max_bucket_distance)
    norm = model.encoder.layer_norm if stable else None
    return Backbone(name, config.model_type, SpeechFront(model, normalize), blocks, norm, relative)


def _ast_block(layer: Any) -> Block:
    a, mlp = layer.attention, layer.mlp
    attn = Attention(a.q_proj, a.k_proj, a.v_proj, a.o_proj, a.num_attention_heads)
    ffn = FeedForward(mlp.fc1, mlp.fc2, mlp.activation_fn)
    return Block(attn, ffn, layer.layernorm_before, layer.layernorm_after, pre_norm=True)


def _speech_block(layer: Any, stable: bool) -> Block:
    a, f = layer.attention, layer.feed_forward
    gate, gate_scale = getattr(a, "gru_rel_pos_linear", None), getattr(a, "gru_rel_pos_const", None)
    attn = Attention(a.q_proj, a.k_proj, a.v_proj, a.out_proj, a.num_heads, gate, gate_scale)
    ffn = FeedForward(f.intermediate_dense, f.output_dense, f.intermediate_act_fn)
    language = getattr(layer, "adapter_layer", None)
    return Block(attn, ffn, layer.layer_norm, layer.final_layer_norm, pre_norm=stable, language=language)


def _refuse_options(name: str, kind: str, frames: int | None, normalize: bool | None) -> None:
    """ValueError for an option that a backbone of a kind (``whisper``, or a value of `KINDS`) has no use for."""
    if frames is not None and kind != "AST":
        raise ValueError(f"frames is for AST; {name} hears clips of any length")
    if normalize is not None and kind in ("AST", "whisper"):
        raise ValueError(f"normalize is for wav2vec 2.0, HuBERT and WavLM; {name} has a front end of its own")


def _audio_sizes(dims: Mapping[str, int]) -> tuple[int, ...]:
    """Arguments of `AudioEncoder`."""
    return tuple(dims[key] for key in ("n_mels", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"))


def _kind_of(source: str) -> str:
    """``whisper`` or a key of `KINDS`."""
    path = Path(source).expanduser()
    if source in checkpoints.available_models() or path.is_file():
        return "whisper"
    if path.is_dir():
        huggingface.check_config(path)
        try:
            kind = json.loads((path / "config.json").read_bytes()).get("model_type", "whisper")
        except ValueError as error:
            raise RuntimeError(f"{path / 'config.json'} is not JSON ({error}); copy it anew") from None
    elif huggingface.is_hub_id(source):
        config = _ask("AutoConfig", "from_pretrained", source)
        kind = config.model_type
    else:
        known = ", ".join([*checkpoints.available_models(), *HUB_IDS])
        raise RuntimeError(f"Backbone {source!r} not found: it is no file or folder, no hub id, and none of {known}")
    if kind != "whisper" and kind not in KINDS:
        raise RuntimeError(f"{source} is a {kind!r}; backbones are Whisper, {', '.join(KINDS.values())}")
    return kind


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise RuntimeError(
            "AST, wav2vec 2.0, HuBERT and WavLM come through transformers: pip install transformers, or take a Whisper"
        ) from None
    return transformers


def _ask(kind: str, function: str, source: str, **options: Any) -> Any:
    """What a function of a class of transformers says, or RuntimeError with the way out."""
    call: Callable[..., Any] = getattr(getattr(_transformers(), kind), function)
    try:
        return call(source, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RuntimeError(
            f"Backbone {source!r} cannot be loaded ({reason}); give the folder of a downloaded copy, with config.json "
            "and model.safetensors"
        ) from error


def _pretrained(source: str, kind: str) -> Any:
    """The model in float32; RuntimeError if any weight is not in its files and would be a random number."""
    model, report = _ask(
        f"{KINDS[kind]}Model", "from_pretrained", source, dtype=torch.float32, output_loading_info=True
    )
    # The vector that SpecAugment puts in is not used here.
    missing = sorted(set(report["missing_keys"]) - {"masked_spec_embed"})
    wrong = sorted(str(entry) for entry in report["mismatched_keys"])
    if missing or wrong:
        first = (missing + wrong)[0]
        raise RuntimeError(f"{source} lacks weights of its architecture: {first} ({len(missing + wrong)} such)")
    return model


def _normalizes(source: str) -> bool:
    """What preprocessor_config.json says of normalising clips; transformers' default where there is none."""
    try:
        settings, _ = _transformers().Wav2Vec2FeatureExtractor.get_feature_extractor_dict(source)
    except OSError:
        return True
    return bool(settings.get("do_normalize", True))


# --- random weights -----------------------------------------------------------------------------------------


def random_backbone(
    name: str,
    *,
    frames: int | None = None,
    normalize: bool | None = None,
    device: str | torch.device = "cpu",
) -> Backbone:
    """A backbone of known sizes with random weights; on device ``meta`` without any, for counting.

    Parameters
    ----------
    name : one of `RANDOM_NAMES`
    frames, normalize : as in `load_backbone`; clips are normalised by default

    Raises
    ------
    ValueError
        If there is no such name, or an option is given to a backbone that has no use for it.
    """
    if name in WHISPERS:
        _refuse_options(name, "whisper", frames, normalize)
        with torch.device(device):
            return whisper_backbone(AudioEncoder(*WHISPERS[name]), name)
    if name not in _CONFIGS:
        raise ValueError(f"no sizes are known of {name!r}; one of {', '.join(RANDOM_NAMES)}")
    kind, sizes = _CONFIGS[name]
    _refuse_options(name, kind, frames, normalize)
    transformers = _transformers()
    config = getattr(transformers, f"{kind}Config")(**sizes)
    with torch.device(device):
        model = getattr(transformers, f"{kind}Model")(config)
        return transformers_backbone(model, name, frames=frames, normalize=normalize is not False)
