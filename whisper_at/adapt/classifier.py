"""A classifier of recordings: a frozen backbone, what methods add to it, and a head; fitted, saved and loaded."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints.files import read_tensors, save_safetensors
from ..checkpoints.shapes import check_shapes
from ..data.clips import Clip, Dataset
from ..tagging.classes import KINDS, ClassSet
from ..tagging.listeners import StateClassifier
from ..train.fit import FitResult
from .backbones import Backbone, Hidden, load_backbone
from .methods import adapt, count_parameters, unmerged
from .pooling import HeadInput, LinearHead, concat_inputs, make_adapt_head, token_mask
from .shared_pass import can_read, read, reader_of, window_states
from .trainer import Evaluation, Recipe, WaveSource, all_logits, evaluate_classifier, fit_classifier

if TYPE_CHECKING:
    from ..model import WhisperAT

FORMAT = "whisper_at.adapt 1"
Method = str | Mapping[str, Any]


class AudioClassifier(nn.Module):
    """From waveforms to logits of classes. A `WaveformClassifier`: ``model.attach("emotion", classifier)`` lets it hear along.

    Parameters
    ----------
    backbone : a `Backbone`, which is adapted in place (or is already), or a name for `load_backbone`
    method : name of a method, a table ``{"name": …, option: value}``, or several; none for a head on the plain encoder
    classes : their names, in the order of the outputs
    head : ``linear``, ``conv`` (PEFT-SER's), ``tl_tr`` (Whisper-AT's)
    layers : what a head hears: ``last``, ``weighted`` (blocks) or ``weighted_conv`` (and what goes into the first)
    pooling : of tokens, for ``linear``; see `whisper_at.adapt.pooling.token_mask`
    seconds : cut longer clips to this, or None
    pad : fill shorter clips with silence, up to ``seconds``, that counts as a part of them
    windows : hear clips as transcription does, in windows of 30 s, so that the classifier can do with the pass of a
        model that it is attached to: for a plain Whisper encoder with a head of means. None: where that is so, unless
        ``seconds`` are given. Else clips are heard by themselves, and spans of a recording in a pass of its own.
    frames, normalize, device : as of `load_backbone`; a `Backbone` has them already
    seed : of the random numbers that new parameters begin with
    kind : ``single_label`` (one class is right: softmax) or ``multi_label`` (sigmoid); fitting on clips with several
        labels, or none, makes it the latter

    Raises
    ------
    ValueError
        If a method, a site, a head or a pooling does not suit the backbone; before any work.
    """

    def __init__(
        self,
        backbone: Backbone | str,
        method: Method | Sequence[Method] = (),
        classes: Sequence[str] = (),
        *,
        head: str = "linear",
        layers: str = "last",
        pooling: str = "frames",
        seconds: float | None = None,
        pad: bool = False,
        windows: bool | None = None,
        frames: int | None = None,
        normalize: bool | None = None,
        device: str | torch.device | None = None,
        seed: int = 0,
        kind: str = "single_label",
    ) -> None:
        super().__init__()
        if not classes:
            raise ValueError("a classifier needs the names of its classes")
        if pad and seconds is None:
            raise ValueError("pad says that shorter clips are filled up, and seconds, up to what: give it, too")
        if seconds is not None and not seconds > 0:
            raise ValueError(f"seconds must be more than 0, not {seconds!r}; None leaves clips as long as they are")
        if kind not in KINDS:
            raise ValueError(f"kind must be {' or '.join(KINDS)}, not {kind!r}")
        if not isinstance(backbone, Backbone):
            backbone = load_backbone(backbone, device, frames=frames, normalize=normalize)
        heard = {name: getattr(backbone.front, name, None) for name in ("frames", "normalize")}
        for name, wanted in (("frames", frames), ("normalize", normalize)):
            if wanted is not None and wanted != heard[name]:
                raise ValueError(
                    f"{backbone.name} has {name} = {heard[name]}: load it with {name}={wanted}, as is wanted"
                )
        self.classes, self.kind, self.seconds, self.pad = tuple(classes), kind, seconds, pad
        self._options: dict[str, Any] = {"head": head, "layers": layers, "pooling": pooling, **heard}
        sizes = {"width": backbone.width, "depth": backbone.layers, "classes": len(self.classes)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            new = make_adapt_head(head, layers=layers, pooling=pooling, frame_rate=backbone.frame_rate, **sizes)
            self.head = new.to(next(backbone.parameters()).device)
            if method or not backbone.methods:
                adapt(backbone, _method_tables(method))
        self.backbone = backbone
        readable = can_read(backbone, self.head) and not pad
        if windows and not readable:
            raise ValueError(
                "windows is for a plain Whisper encoder, without methods and pad, and a head on means of its frames: "
                "tl_tr, or linear with layers 'last' or 'weighted'"
            )
        self.windows = readable and seconds is None if windows is None else windows
        self._try_out()

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.parameters()).device

    @property
    def sample_rate(self) -> int:
        """Of the waveforms that it hears, in Hz."""
        return self.backbone.sample_rate

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        """Logits ``(batch, classes)``.

        Parameters
        ----------
        first : waveforms float32 ``(batch, samples)`` at `backbone.sample_rate`, or what the head keeps of them,
            ``(batch, layers, tokens, dim)``
        second : int ``(batch,)`` samples of each waveform (None: all are full), or the mask of what was kept
        """
        if first.dim() == 2:
            first, second = self.reduce(first, second)
        return self.head(first, second)

    def reduce(self, waveforms: Tensor, lengths: Tensor | None = None) -> HeadInput:
        """What the head keeps of the hidden states of waveforms."""
        if self.windows:
            sizes = [waveforms.shape[1]] * len(waveforms) if lengths is None else lengths.tolist()
            clips = [clip[:size].float().cpu().numpy() for clip, size in zip(waveforms, sizes)]
            states = window_states(self.backbone, clips)
            return concat_inputs([read(self.head, one[None].to(self.device)) for one in states])
        return self.head.reduce(self.backbone(waveforms, lengths))

    def logits(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Logits ``(batch, classes)`` for `tagging.listeners.WaveformClassifier`: of clips of any length, without gradients.

        Longer ones than `seconds` are cut, and shorter ones filled up, as in training.
        """
        least = self.backbone.front.min_samples
        if self.seconds is not None:
            wanted = round(self.seconds * self.sample_rate)
            waveforms, lengths = waveforms[:, :wanted], lengths.clamp(max=wanted)
            least = max(least, wanted) if self.pad else least
        waveforms = nn.functional.pad(waveforms, (0, max(0, least - waveforms.shape[1])))
        with torch.no_grad():
            return self.eval()(waveforms.to(self.device), lengths.clamp(min=least).to(self.device))

    def on_states(self, model: WhisperAT) -> StateClassifier | None:
        """Itself as a reader of a model's own encoder pass, where that holds all that it needs, else None."""
        return reader_of(self, model)

    def fit(
        self,
        train: Dataset,
        valid: Dataset | None = None,
        recipe: Recipe | None = None,
        out: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> FitResult:
        """Train; see `whisper_at.adapt.trainer.fit_classifier`."""
        return fit_classifier(self, train, valid, recipe or Recipe(), out, cache, progress)

    def evaluate(
        self,
        dataset: Dataset,
        batch_size: int = 32,
        cache: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> Evaluation:
        """Scores, logits and confusions on labelled clips."""
        return evaluate_classifier(self, dataset, batch_size, cache, progress)

    def predict(
        self,
        files: Sequence[str | os.PathLike[str]],
        batch_size: int = 32,
        cache: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Probabilities ``(files, classes)`` of recordings; softmax or sigmoid is taken here and only here (W1)."""
        if not len(files):
            return np.zeros((0, len(self.classes)), np.float32)
        source = WaveSource(self, Dataset(tuple(Clip(Path(f), ()) for f in files), self.classes), cache, progress)
        logits = torch.from_numpy(all_logits(self, source, batch_size, progress))
        return ClassSet(self.classes, self.kind).probabilities(logits).numpy()

    def count(self) -> dict[str, int]:
        """Parameters of the patch, of it and its norms, all that train, and the frozen ones (`count_parameters`)."""
        return count_parameters(self.backbone, self.head)

    # --- on disk --------------------------------------------------------------------------------------------------

    def configuration(self) -> dict[str, Any]:
        """What `load` builds it from."""
        known = {"backbone": self.backbone.name, "methods": self.backbone.methods, "classes": list(self.classes)}
        hearing = {"seconds": self.seconds, "pad": self.pad, "windows": self.windows}
        return known | self._options | hearing | {"kind": self.kind}

    def trained(self) -> dict[str, Tensor]:
        """What training changes and nothing frozen: parameters, and buffers of modules with such parameters (S2)."""
        names = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        learning = {name.rpartition(".")[0] for name in names}
        names |= {name for name, _ in self.named_buffers() if name.rpartition(".")[0] in learning}
        return {name: tensor for name, tensor in self.state_dict().items() if name in names}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one ``.safetensors``: what was trained, and the configuration as metadata (S2).

        Merged LoRA is saved as it was before. ValueError for a name that `load` would not take.
        """
        if Path(path).suffix != ".safetensors":
            raise ValueError(f"{path}: the name of a classifier's file must end in .safetensors")
        with unmerged(self.backbone):
            metadata = {
                "format": "pt",
                "kind": FORMAT,
                "configuration": json.dumps(self.configuration()),
                "frozen_sha256": self._frozen_sha256(),
            }
            save_safetensors(self.trained(), path, metadata)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        backbone: Backbone | str | None = None,
        device: str | torch.device | None = None,
        download_root: str | None = None,
    ) -> AudioClassifier:
        """Open what `save` wrote; ``backbone`` stands for the one it names (of another place, say), which is else
        looked for as `load_backbone` does it.

        Raises
        ------
        RuntimeError
            If the file is damaged, or no such classifier.
        ValueError
            If its parameters are not those of the model that its configuration describes, or a given `Backbone` hears
            with other ``frames`` or ``normalize``.

        Warns if the frozen weights are not those that it was trained on.
        """
        tensors, metadata = read_tensors(Path(path))
        if metadata.get("kind") != FORMAT:
            raise RuntimeError(f"{path} is no classifier of whisper_at.adapt; `whisper-at adapt fit` writes such files")
        known = json.loads(metadata["configuration"])
        name = known.pop("backbone")
        known.setdefault("windows", False)  # as before there was the choice
        if backbone is None:
            hearing = {option: known.get(option) for option in ("frames", "normalize")}
            backbone = load_backbone(name, device, **hearing, download_root=download_root)
        model = cls(backbone, known.pop("methods"), device=device, **known)
        model.load_trained(tensors, path)
        if metadata.get("frozen_sha256") != model._frozen_sha256():
            message = f"{path} was trained on other frozen weights than those of {model.backbone.name}: expect nonsense"
            warnings.warn(message, stacklevel=2)
        return model.eval()

    def load_trained(self, tensors: Mapping[str, Tensor], source: object) -> None:
        """Take over what was trained; ValueError if names or shapes differ."""
        check_shapes(tensors, self.trained(), f"{source} does not fit {self.backbone.name}")
        self.load_state_dict(dict(tensors), strict=False)

    def _frozen_sha256(self) -> str:
        """SHA-256 of the frozen parameters' values rounded to float16, in the order of their names."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.named_parameters()):
            if not parameter.requires_grad and parameter.device.type != "meta":
                digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
                digest.update(parameter.detach().to("cpu", torch.float16).contiguous().numpy().data)
        return digest.hexdigest()

    def _try_out(self) -> None:
        """Hear the shortest possible clip, so that a pooling or a method that cannot work is refused now.

        Without weights, it only looks for the tokens that are to be pooled.
        """
        if self.device.type == "meta":
            if isinstance(self.head, LinearHead):
                empty = torch.empty(1, self.backbone.front.special + 1, self.backbone.width, device="meta")
                tokens = self.backbone.prepare_tokens(
                    empty, torch.ones(empty.shape[:2], dtype=torch.bool, device="meta")
                )
                token_mask(self.head.pooling, Hidden((), *tokens[1:]))
            return
        was = self.training
        self.eval()
        with torch.no_grad():
            hidden = self.backbone(torch.zeros(1, max(self.backbone.front.min_samples, 1600), device=self.device))
            self.head(*self.head.reduce(hidden))
        self.train(was)


def _method_tables(method: Method | Sequence[Method]) -> list[dict[str, Any]]:
    given = [method] if isinstance(method, (str, Mapping)) else method
    return [{"name": one} if isinstance(one, str) else dict(one) for one in given]
