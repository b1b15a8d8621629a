"""A classifier of recordings: a frozen backbone, the methods that adapt it, and a head; fitted, saved and loaded."""

from __future__ import annotations

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
from ..checkpoints.hashing import tensors_sha256
from ..checkpoints.shapes import check_shapes
from ..data.clips import Clip, Dataset
from ..tagging.classes import KINDS, ClassSet
from ..tagging.listeners import StateClassifier
from ..train.fit import FitResult
from .backbones import Backbone, Hidden, load_backbone
from .evaluation import Evaluation, check_classes, classification_scores, predict_logits
from .methods import adapt, count_parameters, method_tables, unmerged
from .pooling import HeadInput, LinearHead, concat_inputs, make_adapt_head, token_mask
from .shared_pass import can_share_pass, has_weights_of, reduce_steps, state_classifier, window_states
from .trainer import Recipe, fit_classifier
from .waveforms import WaveformDataset

if TYPE_CHECKING:
    from ..model import WhisperAT

FORMAT = "whisper_at.adapt 1"
Method = str | Mapping[str, Any]


class AudioClassifier(nn.Module):
    """From waveforms to logits of classes.

    ``model.attach("emotion", classifier)`` adds its results to those of a transcription (it is a `WaveformClassifier`).

    Parameters
    ----------
    backbone : Backbone or str
        A backbone, which is adapted in place (or is already), or a name for `load_backbone`.
    method : str, mapping, or sequence of these, optional
        Name of a method, a table ``{"name": …, option: value}``, or several; None for a head on the plain encoder.
    classes : sequence of str
        Names, in the order of the outputs.
    head : str
        ``linear``, ``conv`` (PEFT-SER's) or ``tl_tr`` (Whisper-AT's).
    layers : str
        Input of the head: ``last``, ``weighted`` (all blocks) or ``weighted_conv`` (and the input of the first block).
    pooling : str
        Tokens that a linear head averages; see `whisper_at.adapt.pooling.token_mask`.
    seconds : float, optional
        Length to which longer clips are cut.
    pad : bool
        Pad shorter clips with silence to ``seconds``; it counts as a part of the clip.
    windows : bool, optional
        Encode clips as transcription does, in windows of 30 s, so that the classifier can share the encoder pass of a
        model that it is attached to. It takes a plain Whisper encoder and a head of means, and is then the default
        unless ``seconds`` are given. Otherwise clips are encoded as they are, and recordings in a separate pass.
    frames, normalize, device
        As of `load_backbone`; a `Backbone` has them already.
    seed : int
        Seed of the initial values of new parameters.
    kind : str
        ``single_label`` (one class is right: softmax) or ``multi_label`` (sigmoid). Fitting on clips with several
        labels, or none, makes it the latter.

    Raises
    ------
    ValueError
        If a method, a site, a head or a pooling does not suit the backbone; before any work.
    """

    def __init__(
        self,
        backbone: Backbone | str,
        method: Method | Sequence[Method] | None = None,
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
            raise ValueError("pad needs seconds, the length that shorter clips are padded to")
        if seconds is not None and not seconds > 0:
            raise ValueError(f"seconds must be more than 0, not {seconds!r}; None leaves clips as long as they are")
        if kind not in KINDS:
            raise ValueError(f"kind must be {' or '.join(KINDS)}, not {kind!r}")
        if not isinstance(backbone, Backbone):
            backbone = load_backbone(backbone, device, frames=frames, normalize=normalize)
        front = {name: getattr(backbone.front, name, None) for name in ("frames", "normalize")}
        for name, wanted in (("frames", frames), ("normalize", normalize)):
            if wanted is not None and wanted != front[name]:
                raise ValueError(f"{backbone.name} has {name} = {front[name]}: load it with {name}={wanted}")
        self.classes, self.kind, self.seconds, self.pad = tuple(classes), kind, seconds, pad
        self._options: dict[str, Any] = {"head": head, "layers": layers, "pooling": pooling, **front}
        sizes = {"width": backbone.width, "depth": backbone.layers, "classes": len(self.classes)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            new = make_adapt_head(head, layers=layers, pooling=pooling, frame_rate=backbone.frame_rate, **sizes)
            self.head = new.to(next(backbone.parameters()).device)
            if method or not backbone.methods:
                adapt(backbone, method_tables(method or ()))
        self.backbone = backbone
        shareable = can_share_pass(backbone, self.head) and not pad
        if windows and not shareable:
            raise ValueError(
                "windows is for a plain Whisper encoder, without methods and pad, and a head on means of its frames: "
                "tl_tr, or linear with layers 'last' or 'weighted'"
            )
        self.windows = shareable and seconds is None if windows is None else windows
        self._check_forward()

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    @property
    def sample_rate(self) -> int:
        """Sample rate of the waveforms, in Hz."""
        return self.backbone.sample_rate

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        """Compute logits.

        Parameters
        ----------
        first : Tensor
            Waveforms float32 ``(batch, samples)`` at `sample_rate`, or values of `frozen_states` ``(batch, layers,
            tokens, dim)``.
        second : Tensor, optional
            Samples of each waveform, int ``(batch,)``, by default all; or the mask of `frozen_states`.

        Returns
        -------
        Tensor, shape (batch, classes)
        """
        if first.dim() == 2:
            first, second = self.reduce(first, second)
        elif self._trains_encoder:
            assert second is not None
            first, second = self.head.reduce(self.backbone.encode_from(first, second))
        return self.head(first, second)

    def reduce(self, waveforms: Tensor, lengths: Tensor | None = None) -> HeadInput:
        """Encode waveforms, and return what the head keeps of their hidden states."""
        if self.windows:
            sizes = [waveforms.shape[1]] * len(waveforms) if lengths is None else lengths.tolist()
            clips = [clip[:size].float().cpu().numpy() for clip, size in zip(waveforms, sizes)]
            states = window_states(self.backbone, clips)
            return concat_inputs([reduce_steps(self.head, one[None].to(self.device)) for one in states])
        return self.head.reduce(self.backbone(waveforms, lengths))

    @property
    def _trains_encoder(self) -> bool:
        return self.backbone.num_frozen_blocks != self.backbone.layers + 1

    def frozen_states(self, waveforms: Tensor, lengths: Tensor) -> HeadInput:
        """Compute what training does not change, so that it is computed once for all epochs.

        With an encoder that no method trains it is `reduce`, else `Backbone.frozen_states`, of which a head on the last
        layer needs the last.
        """
        if not self._trains_encoder:
            return self.reduce(waveforms, lengths)
        states, mask = self.backbone.frozen_states(waveforms, lengths)
        return HeadInput(states[:, -1:] if getattr(self.head, "layers", "") == "last" else states, mask)

    def logits(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Compute logits ``(batch, classes)`` of clips of any length, without gradients.

        Clips longer than `seconds` are cut and, with `pad`, shorter ones padded, as in training. Arguments are those of
        `whisper_at.tagging.listeners.WaveformClassifier.logits`.
        """
        shortest = self.backbone.front.min_samples
        if self.seconds is not None:
            wanted = round(self.seconds * self.sample_rate)
            waveforms, lengths = waveforms[:, :wanted], lengths.clamp(max=wanted)
            shortest = max(shortest, wanted) if self.pad else shortest
        waveforms = nn.functional.pad(waveforms, (0, max(0, shortest - waveforms.shape[1])))
        with torch.no_grad():
            return self.eval()(waveforms.to(self.device), lengths.clamp(min=shortest).to(self.device))

    def on_states(self, model: WhisperAT) -> StateClassifier | None:
        """Return a classifier of the states of a model's own encoder pass, or None if they do not suffice."""
        if not self.windows or not has_weights_of(self.backbone, model.encoder):
            return None
        return state_classifier(self.head, ClassSet(self.classes, self.kind))

    def fit(
        self,
        train: Dataset,
        valid: Dataset | None = None,
        recipe: Recipe | None = None,
        out: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> FitResult:
        """Train in place, and take the weights of the epoch that validation chooses.

        With `windows`, it is trained on every clip in isolation and in the context of others, and validated on all of
        these. With ``augment`` or ``spec_augment``, which change single clips, `windows` becomes False.

        Parameters
        ----------
        train : Dataset
            Clips to train on.
        valid : Dataset, optional
            Clips to choose the epoch by; by default a tenth of ``train`` is held out.
        recipe : Recipe, optional
            How to fit.
        out : path, optional
            Folder for the state of the fit, from which a later call resumes; see `whisper_at.train.fit.fit`.
        cache : path, optional
            Folder of decoded audio; see `WaveformDataset`.
        progress : bool
            Show progress bars.

        Returns
        -------
        FitResult
            Scores by epoch, and the chosen epoch.

        Raises
        ------
        ValueError
            If the data's classes are not the model's, a class has no clip to train on, ``select`` is no score of such
            data, or SpecAugment is wanted for a backbone without a spectrogram; all before any work.
        RuntimeError
            If a file cannot be decoded.
        """
        return fit_classifier(self, train, valid, recipe or Recipe(), out, cache, progress)

    def evaluate(
        self,
        dataset: Dataset,
        batch_size: int = 32,
        cache: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> Evaluation:
        """Compute scores, logits and the confusion matrix; they do not depend on ``batch_size`` (S8).

        Raises
        ------
        ValueError
            If there is no clip, or the classes are not the model's.
        """
        if not len(dataset):
            raise ValueError("there are no clips to evaluate on")
        check_classes(dataset.classes, self.classes)
        waveforms = self.load_waveforms(dataset.clips, cache, progress)
        logits, targets = predict_logits(self, waveforms, batch_size, progress), dataset.targets()
        multi_label = self.kind == "multi_label" or dataset.multi_label
        return Evaluation(classification_scores(logits, targets, multi_label), logits, targets)

    def predict(
        self,
        files: Sequence[str | os.PathLike[str]],
        batch_size: int = 32,
        cache: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Return probabilities ``(files, classes)``; softmax or sigmoid is taken here and nowhere else (W1)."""
        if not len(files):
            return np.zeros((0, len(self.classes)), np.float32)
        waveforms = self.load_waveforms([Clip(Path(file), ()) for file in files], cache, progress)
        logits = torch.from_numpy(predict_logits(self, waveforms, batch_size, progress))
        return ClassSet(self.classes, self.kind).probabilities(logits).numpy()

    def load_waveforms(
        self,
        clips: Sequence[Clip],
        cache: str | os.PathLike[str] | None = None,
        progress: bool = False,
        augment: bool = False,
    ) -> WaveformDataset:
        """Return clips as the backbone takes them; ValueError if one is too long for it and is not cut."""
        front, rate = self.backbone.front, self.sample_rate
        shortest = round(self.seconds * rate) if self.pad and self.seconds else front.min_samples
        waveforms = WaveformDataset(clips, rate, cache, self.seconds, shortest, progress, augment)
        if front.max_samples is not None and (longest := max(waveforms.lengths, default=0)) > front.max_samples:
            name = waveforms.clips[waveforms.lengths.index(longest)].path
            raise ValueError(
                f"{name} lasts {longest / rate:.1f} s, but {self.backbone.name} takes at most "
                f"{(front.max_samples + 1) / rate:g} s: set seconds, so that longer clips are cut"
            )
        return waveforms

    def count(self) -> dict[str, int]:
        """Count the parameters that are trained and those that are frozen, as `count_parameters` does."""
        return count_parameters(self.backbone, self.head)

    # --- on disk --------------------------------------------------------------------------------------------------

    def configuration(self) -> dict[str, Any]:
        """Return what `load` needs to build the classifier, as JSON values."""
        known = {"backbone": self.backbone.name, "methods": self.backbone.methods, "classes": list(self.classes)}
        inputs = {"seconds": self.seconds, "pad": self.pad, "windows": self.windows}
        return known | self._options | inputs | {"kind": self.kind}

    def trained_state_dict(self) -> dict[str, Tensor]:
        """Return all that training changes: parameters, and buffers of modules with such parameters (S2)."""
        names = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        modules = {name.rpartition(".")[0] for name in names}
        names |= {name for name, _ in self.named_buffers() if name.rpartition(".")[0] in modules}
        return {name: tensor for name, tensor in self.state_dict().items() if name in names}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``.safetensors`` of what was trained, with the configuration as metadata (S2).

        Merged LoRA is saved unmerged. ValueError for another suffix, which `load` would not take.
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
            save_safetensors(self.trained_state_dict(), path, metadata)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        backbone: Backbone | str | None = None,
        device: str | torch.device | None = None,
        download_root: str | None = None,
    ) -> AudioClassifier:
        """Open a file that `save` wrote.

        Parameters
        ----------
        path : path
            The file.
        backbone : Backbone or str, optional
            Stands for the backbone that the file names; by default that one is loaded by `load_backbone`.
        device, download_root
            As of `load_backbone`.

        Raises
        ------
        RuntimeError
            If the file is damaged, or no such classifier.
        ValueError
            If its parameters are not those of the model that its configuration describes, or a given `Backbone` has
            other ``frames`` or ``normalize``.

        Warns
        -----
        UserWarning
            If the frozen weights are not those that it was trained on.
        """
        tensors, metadata = read_tensors(Path(path))
        if metadata.get("kind") != FORMAT:
            raise RuntimeError(f"{path} is no classifier of whisper_at.adapt; `whisper-at adapt fit` writes such files")
        known = json.loads(metadata["configuration"])
        name = known.pop("backbone")
        known.setdefault("windows", False)  # older files do not have it
        if backbone is None:
            front = {option: known.get(option) for option in ("frames", "normalize")}
            backbone = load_backbone(name, device, **front, download_root=download_root)
        model = cls(backbone, known.pop("methods"), device=device, **known)
        model.load_trained_state_dict(tensors, path)
        if metadata.get("frozen_sha256") != model._frozen_sha256():
            warnings.warn(
                f"{path} was trained on other frozen weights than those of {model.backbone.name}; its results will be "
                "meaningless",
                stacklevel=2,
            )
        return model.eval()

    def load_trained_state_dict(self, tensors: Mapping[str, Tensor], source: object) -> None:
        """Load the result of `trained_state_dict`; ValueError, which names ``source``, if names or shapes differ."""
        check_shapes(tensors, self.trained_state_dict(), f"{source} does not fit {self.backbone.name}")
        self.load_state_dict(dict(tensors), strict=False)

    def _frozen_sha256(self) -> str:
        frozen = {name: weight for name, weight in self.named_parameters() if not weight.requires_grad}
        return tensors_sha256({name: weight for name, weight in frozen.items() if weight.device.type != "meta"})

    def _check_forward(self) -> None:
        """Run the shortest possible clip, so that a pooling or a method that does not fit is refused now.

        Without weights, only the tokens that are to be pooled are checked.
        """
        front = self.backbone.front
        if self.device.type == "meta":
            if isinstance(self.head, LinearHead):
                empty = torch.empty(1, front.special + 1, self.backbone.width, device="meta")
                tokens = self.backbone.prepare_tokens(
                    empty, torch.ones(empty.shape[:2], dtype=torch.bool, device="meta")
                )
                token_mask(self.head.pooling, Hidden((), *tokens[1:]))
            return
        training = self.training
        self.eval()
        with torch.no_grad():
            hidden = self.backbone(torch.zeros(1, max(front.min_samples, 1600), device=self.device))
            self.head(*self.head.reduce(hidden))
        self.train(training)
