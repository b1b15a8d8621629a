"""Names and shapes of the parameters of a Whisper and of a head, and how those of a file are checked."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import whisper
from torch import Tensor

Shape = tuple[int, ...]
VOCABULARY_SIZES = (51864, 51865, 51866)
"""Tokens of English-only models, of multilingual ones, and of large-v3, which knows one language more."""
# name: encoder layers, width, decoder layers, mels, vocabulary (spec section 1.1)
_SIZES = {
    "tiny": (4, 384, 4, 80, 51865),
    "base": (6, 512, 6, 80, 51865),
    "small": (12, 768, 12, 80, 51865),
    "medium": (24, 1024, 24, 80, 51865),
    "large-v2": (32, 1280, 32, 80, 51865),
    "large-v3": (32, 1280, 32, 128, 51866),
    "turbo": (32, 1280, 4, 128, 51866),
}
MAX_DIMENSION = 1 << 20
MAX_LAYERS = 1024
"""More than any Whisper has, and few enough to be counted."""
_ALIASES = {"large": "large-v3", "large-v1": "large-v2", "large-v3-turbo": "turbo"}


def model_dims(name: str) -> dict[str, int]:
    """Return the dimensions of an official Whisper, without its file.

    Parameters
    ----------
    name : str
        Name of the model, such as ``"small.en"``.

    Returns
    -------
    dict of str to int
        The fields of `whisper.model.ModelDimensions`.

    Raises
    ------
    ValueError
        If openai-whisper has no such model.
    """
    base = name.removesuffix(".en")
    english = base != name
    if name not in whisper._MODELS:
        raise ValueError(f"openai-whisper has no model {name!r}; it has {', '.join(whisper._MODELS)}")
    layers, width, decoder_layers, mels, vocabulary = _SIZES[_ALIASES.get(base, base)]
    return {
        "n_mels": mels,
        "n_audio_ctx": 1500,
        "n_audio_state": width,
        "n_audio_head": width // 64,
        "n_audio_layer": layers,
        "n_vocab": vocabulary - english,
        "n_text_ctx": 448,
        "n_text_state": width,
        "n_text_head": width // 64,
        "n_text_layer": decoder_layers,
    }


def check_dims(dims: Mapping[str, int], source: object) -> None:
    """Raise RuntimeError, which names `source`, unless a Whisper could have these dimensions.

    It is asked before anything is made of them: a crafted file could name ones that no memory holds.
    """
    for name, value in dims.items():
        if not 1 <= value <= (MAX_LAYERS if name.endswith("_layer") else MAX_DIMENSION):
            raise RuntimeError(f"{source} says that its {name} is {value}, which no Whisper has; copy it again")
    for kind in ("audio", "text"):
        width, heads = dims[f"n_{kind}_state"], dims[f"n_{kind}_head"]
        if width % heads:
            raise RuntimeError(f"{source} says that its n_{kind}_head is {heads}, which does not divide {width}")


def check_size(dims: Mapping[str, int], state: Mapping[str, Tensor], source: object) -> None:
    """Raise RuntimeError, which names `source`, if a model of these dimensions is much larger than what a file holds.

    It is asked before memory is taken for the model; which parameters are missing is said when they are put into it.
    """
    expected, found = whisper_parameters(dims), sum(tensor.numel() for tensor in state.values())
    if expected > 2 * found:
        named = ", ".join(f"{name} {value}" for name, value in dims.items())
        raise RuntimeError(
            f"{source} is of {named}: these make {expected} parameters, but it has {found}; copy it again"
        )


def whisper_parameters(dims: Mapping[str, int]) -> int:
    """Count the parameters of a Whisper, with positional embeddings; the shared token embedding counts once."""
    return sum(math.prod(shape) for shape in whisper_shapes(dict(dims)).values())


def check_shapes(
    found: Mapping[str, Tensor | Shape],
    expected: Mapping[str, Tensor | Shape],
    message: str,
    hint: str = "",
    error: type[Exception] = ValueError,
) -> None:
    """Raise unless parameters have the names and shapes that are expected.

    Parameters
    ----------
    found, expected : mapping of str to Tensor or tuple of int
        Parameters or their shapes by name.
    message : str
        What does not fit what; the first wrong parameter and the number of wrong ones are added.
    hint : str
        What to do about it.
    error : type of Exception
        What is raised.

    Examples
    --------
    >>> check_shapes({"a": (2,)}, {"a": (3,)}, "head.pth is not a head of width 3")
    Traceback (most recent call last):
    ...
    ValueError: head.pth is not a head of width 3: a is (2,), expected (3,) (1 such)
    """
    found, expected = _shapes_of(found), _shapes_of(expected)
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        name = wrong[0]
        raise error(
            f"{message}: {name} is {found.get(name, 'missing')}, expected {expected.get(name, 'none of that name')} "
            f"({len(wrong)} such){hint and f'; {hint}'}"
        )


def _shapes_of(parameters: Mapping[str, Tensor | Shape]) -> dict[str, Shape]:
    return {name: tuple(p.shape) if isinstance(p, Tensor) else p for name, p in parameters.items()}


def whisper_shapes(dims: Mapping[str, int]) -> dict[str, Shape]:
    """Return name → shape of the state dict of an openai-whisper model with dimensions `dims`."""
    shapes: dict[str, Shape] = {}
    for part, kind in (("encoder", "audio"), ("decoder", "text")):
        width = dims[f"n_{kind}_state"]
        for i in range(dims[f"n_{kind}_layer"]):
            block = _block_shapes(width, cross_attention=part == "decoder")
            shapes |= {f"{part}.blocks.{i}.{name}": shape for name, shape in block.items()}
        shapes[f"{part}.positional_embedding"] = (dims[f"n_{kind}_ctx"], width)
    audio, text = dims["n_audio_state"], dims["n_text_state"]
    shapes |= _weight_and_bias("encoder.conv1", (audio, dims["n_mels"], 3))
    shapes |= _weight_and_bias("encoder.conv2", (audio, audio, 3))
    shapes |= _weight_and_bias("encoder.ln_post", (audio,)) | _weight_and_bias("decoder.ln", (text,))
    return shapes | {"decoder.token_embedding.weight": (dims["n_vocab"], text)}


def head_shapes(width: int, low_compute: bool = False) -> dict[str, Shape]:
    """Return name → shape of the parameters of TL-TR, or of TL-TR-512, on an encoder of `width`."""
    d = 512 if low_compute else width
    shapes: dict[str, Shape] = {}
    if low_compute:
        shapes |= _weight_and_bias("down_layer.0", (width,)) | _weight_and_bias("down_layer.1", (d, width))
    for block in ("time_tr", "layer_tr"):
        shapes |= {f"{block}.{name}": shape for name, shape in _block_shapes(d).items()}
    return shapes | _weight_and_bias("mlp_layer.0", (d,)) | _weight_and_bias("mlp_layer.1", (527, d))


def _block_shapes(width: int, cross_attention: bool = False) -> dict[str, Shape]:
    """Return name → shape of the parameters of one of Whisper's blocks."""
    shapes: dict[str, Shape] = {}
    for attention in ("attn", "cross_attn") if cross_attention else ("attn",):
        for projection in ("query", "key", "value", "out"):
            shapes |= _weight_and_bias(f"{attention}.{projection}", (width, width))
        del shapes[f"{attention}.key.bias"]  # keys have none
        shapes |= _weight_and_bias(f"{attention}_ln", (width,))
    shapes |= _weight_and_bias("mlp.0", (4 * width, width)) | _weight_and_bias("mlp.2", (width, 4 * width))
    return shapes | _weight_and_bias("mlp_ln", (width,))


def _weight_and_bias(name: str, shape: Shape) -> dict[str, Shape]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def cut_padding(embedding: Tensor, source: object) -> Tensor:
    """Return a token embedding ``(tokens, width)`` without rows of zeros that round the vocabulary up.

    Warns of rows that are cut, and names `source` there; RuntimeError if what is left is no vocabulary of Whisper's.
    """
    rows = len(embedding)
    if rows in VOCABULARY_SIZES:
        return embedding
    used = int(embedding.any(dim=1).nonzero().max()) + 1 if embedding.any() else 0
    if used in VOCABULARY_SIZES:
        warnings.warn(f"{source}: the last {rows - used} of {rows} tokens are empty, and are left out", stacklevel=6)
        return embedding[:used]
    why = (
        f"{rows - VOCABULARY_SIZES[-1]} more than large-v3, so tokens were added to it"
        if rows > VOCABULARY_SIZES[-1]
        else "so its tokens are not Whisper's"
    )
    raise RuntimeError(
        f"{source} has a vocabulary of {rows} tokens, {why}; openai-whisper derives language and timestamp tokens from "
        f"that number, which must be one of {', '.join(map(str, VOCABULARY_SIZES))}. "
        "Give a model trained with Whisper's own tokenizer"
    )
