"""What `Fusion` needs to know of a network: its layers, and the frames that each of them gives."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class LayeredNetwork(nn.Module):
    """A network whose layers can be read as sequences of frames; `VGGish`, `CNN14` and `TransformerNetwork` are such.

    Attributes
    ----------
    name : str
        Name that `load_fusion` knows it by.
    sample_rate : int
        Rate of the waveforms that it reads, in Hz.
    layers : tuple of int
        Numbers of the layers that can be read.
    frame_seconds : float or None
        Time between frames in seconds; None if every chunk gives a single frame (AST).
    chunk_seconds : float
        Audio that is read in one pass, in seconds; longer recordings are read in consecutive chunks.
    pooling : str
        Default pooling from frames to a clip, one of `frames.POOLINGS`.
    """

    name: str
    sample_rate: int
    layers: tuple[int, ...]
    frame_seconds: float | None
    chunk_seconds: float
    pooling: str

    def layer_width(self, layer: int) -> int:
        """Return the width of a layer's frames."""
        raise NotImplementedError

    def layer_frames(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return the frames of each chosen layer for a batch of log-mel spectrograms.

        Parameters
        ----------
        x : Tensor, shape (batch, 1, mel_frames, 64)
            Log-mel spectrograms.
        layers : sequence of int
            Layers to read; order and duplicates do not matter.

        Returns
        -------
        list of Tensor, shape (batch, layer_width, frames)
            One tensor for each chosen layer, in the network's order.
        """
        raise NotImplementedError

    def encode_waveforms(self, waveforms: Sequence[Tensor], layers: Sequence[int]) -> list[list[Tensor]]:
        """Return the frames of each chosen layer for recordings of any lengths.

        Parameters
        ----------
        waveforms : sequence of Tensor, shape (samples,)
            Recordings at ``sample_rate``.
        layers : sequence of int
            Layers to read; order and duplicates do not matter.

        Returns
        -------
        list of list of Tensor, shape (layer_width, frames)
            For each recording, one tensor for each chosen layer, in the network's order.
        """
        raise NotImplementedError
