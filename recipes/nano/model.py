"""The trainable form of nano.en: openai-whisper's layers with a compact vocabulary.

* Only the tokens in use have their own embedding. All others share a vector, and the log of their number is added to
  its logit. This is equal to the full softmax over 51,864 tokens and much cheaper.
* The embedding of a timestamp is a linear map of the encoder's positional sinusoid at that time, plus a small free
  vector, so that what is learned at one time generalises to all times.
* The cross-attention of the last two decoder layers is trained to attend to the next word, that of the layer before
  to the last written word. The last two are the ones that openai-whisper uses for word timestamps by default.

`NanoWhisper.export` writes a checkpoint that the unmodified `whisper.load_model` opens.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whisper.model import ModelDimensions, Whisper, sinusoids

from .vocabulary import Vocabulary

DIMS = ModelDimensions(
    n_mels=80,
    n_audio_ctx=1500,
    n_audio_state=128,
    n_audio_head=4,
    n_audio_layer=4,
    n_vocab=51864,
    n_text_ctx=448,
    n_text_state=128,
    n_text_head=4,
    n_text_layer=4,
)
GUIDED_LAYERS = {1: 1, 2: 0, 3: 0}
"""Decoder layers with guided cross-attention, and by how many words the target lies before the next word."""
ENCODER_OFFSETS = ((-8, -3, 3, 8), (-14, -5, 5, 14), (-20, -8, 8, 20), (-30, -10, 0, 10))
"""Initial attention offset of every encoder head by layer, in frames of 20 ms (`init_relative_attention`)."""


def init_relative_attention(
    attention: nn.Module, offsets: tuple[int, ...], basis: Tensor | None = None, gain: float = 1.5
) -> None:
    """Add weights to query and key so that initially head h at position i attends around i + offsets[h].

    The key has sin(w i) and cos(w i) of sixteen frequencies of the positional sinusoids, the query the same rotated by
    w · offset. Their product is the sum of cos(w (j − i − offset)), which has its maximum at j = i + offset. To learn
    this from absolute positions would take most of the training.

    Parameters
    ----------
    attention : nn.Module
        openai-whisper's `MultiHeadAttention`.
    offsets : tuple of int
        Offset of each head, in positions.
    basis : Tensor, shape (width, width), optional
        Rotation of the sinusoids in the input, if they are rotated.
    gain : float
        Factor of the added weights.
    """
    width = attention.query.weight.shape[0]
    size, half = width // len(offsets), width // 2
    frequencies = torch.exp(-torch.log(torch.tensor(10000.0)) / (half - 1) * torch.arange(half))
    key, query = torch.zeros(width, width), torch.zeros(width, width)
    for head, offset in enumerate(offsets):
        for i in range(size // 2):
            f, row = 2 * i, head * size + 2 * i
            angle = frequencies[f] * offset
            key[row, f] = key[row + 1, half + f] = gain
            query[row, f] = query[row + 1, half + f] = gain * torch.cos(angle)
            query[row, half + f] = gain * torch.sin(angle)
            query[row + 1, f] = -gain * torch.sin(angle)
    for layer, weight in ((attention.key, key), (attention.query, query)):
        layer.weight.mul_(0.5).add_(weight if basis is None else weight @ basis.T)


class NanoWhisper(nn.Module):
    """Encoder, decoder, compact embedding, and the frame classifier that is only used for training."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        whisper = Whisper(dataclasses.replace(DIMS, n_vocab=1))
        self.encoder, self.decoder = whisper.encoder, whisper.decoder
        d = DIMS.n_text_state
        self.embedding = nn.Parameter(0.05 * torch.randn(vocabulary.time0, d))
        self.time_map = nn.Linear(d, d)
        self.time_free = nn.Parameter(torch.zeros(1501, d))
        self.frame_head = nn.Linear(d, len(vocabulary.classes) + 1)
        self.register_buffer("sinusoids", sinusoids(1501, d), persistent=False)
        with torch.no_grad():
            # with PyTorch's defaults the output of the convolutions is too small beside the positional embedding
            self.encoder.conv1.weight *= 2.5
            self.encoder.conv2.weight *= 3.5
            # initially a timestamp is the encoder's sinusoid at that time, and cross-attention attends there
            self.time_map.weight.mul_(0.1).add_(0.1 * torch.eye(d))
            rotation = torch.linalg.qr(torch.randn(d, d))[0]
            self.decoder.positional_embedding.copy_(0.1 * sinusoids(DIMS.n_text_ctx, d) @ rotation.T)
            for block in self.decoder.blocks:
                init_relative_attention(block.attn, (-1, -1, -2, 0), rotation)
                init_relative_attention(block.cross_attn, (0, 8, 20, 35))
            for block, offsets in zip(self.encoder.blocks, ENCODER_OFFSETS):
                init_relative_attention(block.attn, offsets)
        del self.decoder.token_embedding

    def embeddings(self) -> Tensor:
        """Return the embedding of every index of the vocabulary, ``(vocabulary.size, width)``."""
        return torch.cat([self.embedding, self.time_map(self.sinusoids).float() + self.time_free])

    def encode(self, mel: Tensor, offset: Tensor) -> Tensor:
        """Return the features of windows, ``(batch, frames, width)``.

        Parameters
        ----------
        mel : Tensor, shape (batch, 80, 2 · frames)
            Log-mel spectrograms.
        offset : Tensor of int, shape (batch,)
            First positions of the windows, in frames of 20 ms.
        """
        e = self.encoder
        x = F.gelu(e.conv1(mel))
        x = F.gelu(e.conv2(x)).permute(0, 2, 1)
        x = x + e.positional_embedding[offset[:, None] + torch.arange(x.shape[1])]
        for block in e.blocks:
            x = block(x)
        return e.ln_post(x)

    def decode(
        self, tokens: list[Tensor], features: Tensor, has_loss: list[Tensor], guided: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Decode several token sequences for the same features, which are projected only once.

        Parameters
        ----------
        tokens : list of Tensor of int, each of shape (batch, length)
            The sequences; each attends to itself only.
        features : Tensor, shape (batch, frames, width)
            Output of `encode`.
        has_loss : list of Tensor of bool, each of shape (batch, length)
            Positions to compute logits for.
        guided : list of Tensor of int, each of shape (batch, guides)
            Positions to return the cross-attention of.

        Returns
        -------
        logits : list of Tensor, each of shape (positions, vocabulary.size)
            One for each sequence.
        attention : list of Tensor, each of shape (batch, heads, all guides, frames)
            Log probabilities, one for each guided layer.
        """
        d, heads = self.decoder, DIMS.n_text_head
        embeddings, lengths = self.embeddings(), [t.shape[1] for t in tokens]
        x = torch.cat([F.embedding(t, embeddings) + d.positional_embedding[: t.shape[1]] for t in tokens], 1)
        positions = torch.cat([p + sum(lengths[:i]) for i, p in enumerate(guided)], 1)
        attention = []
        for i, block in enumerate(d.blocks):
            h = block.attn_ln(x).split(lengths, 1)
            x = x + torch.cat([block.attn(part, mask=d.mask)[0] for part in h], 1)
            cross = block.cross_attn
            query, key, value = (
                layer(z).unflatten(2, (heads, -1)).transpose(1, 2)
                for layer, z in ((cross.query, block.cross_attn_ln(x)), (cross.key, features), (cross.value, features))
            )
            if i in GUIDED_LAYERS:
                part = torch.gather(query, 2, positions[:, None, :, None].expand(-1, heads, -1, query.shape[3]))
                attention.append((part @ key.transpose(2, 3) * query.shape[3] ** -0.5).float().log_softmax(-1))
            attended = F.scaled_dot_product_attention(query, key, value)
            x = x + cross.out(attended.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.mlp_ln(x))
        bias = torch.zeros(self.vocabulary.size)
        bias[self.vocabulary.other] = torch.log(torch.tensor(float(self.vocabulary.n_other)))
        states = [part[mask] for part, mask in zip(d.ln(x).split(lengths, 1), has_loss)]
        return [(s @ embeddings.T.to(s.dtype)).float() + bias for s in states], attention

    @torch.no_grad()
    def export(self, path: Path) -> None:
        """Write a checkpoint in openai-whisper's layout and half precision, atomically."""
        v, embeddings = self.vocabulary, self.embeddings()
        full = embeddings[v.other].expand(DIMS.n_vocab, -1).clone()
        full[torch.tensor(v.ids)] = embeddings[: v.other]
        full[v.timestamp_begin :] = embeddings[v.time0 :]
        state = {f"encoder.{k}": t for k, t in self.encoder.state_dict().items()}
        state |= {f"decoder.{k}": t for k, t in self.decoder.state_dict().items()}
        state["decoder.token_embedding.weight"] = full
        temporary = path.with_suffix(".part")
        torch.save(
            {"dims": dataclasses.asdict(DIMS), "model_state_dict": {k: t.half() for k, t in state.items()}}, temporary
        )
        temporary.rename(path)


def attention_targets(guides: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Return what cross-attention is trained to be.

    A target is uniform over the word, and has a seventh of its mass on the pause after it, so that word timestamps
    include the pause.

    Parameters
    ----------
    guides : Tensor, shape (batch, guides, 4)
        `windows.Guide`, in seconds of the window; the position of padding is −1.
    frames : int
        Number of encoder frames.

    Returns
    -------
    positions : Tensor of int, shape (batch, guides)
        Decoder positions.
    targets : Tensor, shape (batch, guides, frames)
        Probabilities; 0 for padding.
    """
    centre = (torch.arange(frames) + 0.5) / 50
    position, start, end, pause_end = (guides[..., i : i + 1] for i in range(4))
    word = ((centre >= start - 0.01) & (centre < end + 0.01) & (position >= 0)).float()
    pause = ((centre >= end + 0.01) & (centre < pause_end) & (position >= 0)).float()
    word = word / word.sum(-1, keepdim=True).clamp(min=1)
    has_pause = (pause.sum(-1, keepdim=True) > 0) & (word.sum(-1, keepdim=True) > 0)
    pause = pause / pause.sum(-1, keepdim=True).clamp(min=1)
    targets = torch.where(has_pause, 0.86 * word + 0.14 * pause, word)
    return position[..., 0].clamp(min=0).long(), targets
