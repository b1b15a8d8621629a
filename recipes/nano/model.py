"""The trainable form of nano.en: openai-whisper's own layers around a compact vocabulary.

* Only the tokens in use have an embedding of their own; all others share one vector whose logit is raised by the log
  of their number. That equals the full softmax over 51,864 tokens at a fraction of its cost.
* The embedding of a timestamp is a linear map of the encoder's positional sinusoid at that time plus a small free
  part, so that what is learned at one time holds at every time.
* The cross-attention of the last two decoder layers is guided to the word that comes next, that of the layer below
  to the word just written. The last two are those that openai-whisper takes for word timestamps when a checkpoint
  names no alignment heads.

`export` writes an ordinary checkpoint that the unmodified `whisper.load_model` opens.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whisper.model import ModelDimensions, Whisper, sinusoids

from .windows import Vocabulary

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
GUIDED = {1: 1, 2: 0, 3: 0}
"""Decoder layers whose cross-attention is guided: 0 to the word that comes next, 1 to the one before it."""
SHIFTS = ((-8, -3, 3, 8), (-14, -5, 5, 14), (-20, -8, 8, 20), (-30, -10, 0, 10))
"""Where every encoder head looks at first, in frames of 20 ms from its own position: see `look_around`."""


def look_around(attention: nn.Module, shifts: tuple[int, ...], basis: Tensor | None = None, gain: float = 1.5) -> None:
    """Adds to the initial query and key weights what makes head h at position i attend around i + shifts[h].

    With sin(w i), cos(w i) of sixteen frequencies of the positional sinusoids in the key, and the same rotated by
    w·shift in the query, their product is the sum of cos(w (j − i − shift)): a bump at j = i + shift. Learning
    to look at neighbours from absolute positions alone would take most of the training. `basis` (width, width):
    the rotation of the sinusoids in the input, if they are rotated.
    """
    width = attention.query.weight.shape[0]
    size, half = width // len(shifts), width // 2
    speeds = torch.exp(-torch.log(torch.tensor(10000.0)) / (half - 1) * torch.arange(half))
    key, query = torch.zeros(width, width), torch.zeros(width, width)
    for head, shift in enumerate(shifts):
        for i in range(size // 2):
            f, row = 2 * i, head * size + 2 * i
            turn = speeds[f] * shift
            key[row, f] = key[row + 1, half + f] = gain
            query[row, f] = query[row + 1, half + f] = gain * torch.cos(turn)
            query[row, half + f] = gain * torch.sin(turn)
            query[row + 1, f] = -gain * torch.sin(turn)
    for layer, weight in ((attention.key, key), (attention.query, query)):
        layer.weight.mul_(0.5).add_(weight if basis is None else weight @ basis.T)


class Nano(nn.Module):
    """Encoder, decoder, compact embedding, and the frame classifier that only training uses."""

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
            # with PyTorch's default the convolutions whisper beside the positions and nothing is learned for minutes
            self.encoder.conv1.weight *= 2.5
            self.encoder.conv2.weight *= 3.5
            # a timestamp starts as the encoder's sinusoid at that time, and cross-attention starts by looking there
            self.time_map.weight.mul_(0.1).add_(0.1 * torch.eye(d))
            rotation = torch.linalg.qr(torch.randn(d, d))[0]
            self.decoder.positional_embedding.copy_(0.1 * sinusoids(DIMS.n_text_ctx, d) @ rotation.T)
            for block in self.decoder.blocks:
                look_around(block.attn, (-1, -1, -2, 0), rotation)
                look_around(block.cross_attn, (0, 8, 20, 35))
            for block, shifts in zip(self.encoder.blocks, SHIFTS):
                look_around(block.attn, shifts)
        del self.decoder.token_embedding

    def table(self) -> Tensor:
        """Embedding of every compact token, (vocabulary.size, width)."""
        return torch.cat([self.embedding, self.time_map(self.sinusoids).float() + self.time_free])

    def encode(self, mel: Tensor, offset: Tensor) -> Tensor:
        """mel (batch, 80, 2·frames), offset (batch) in frames of 20 ms → (batch, frames, width)."""
        e = self.encoder
        x = F.gelu(e.conv1(mel))
        x = F.gelu(e.conv2(x)).permute(0, 2, 1)
        x = x + e.positional_embedding[offset[:, None] + torch.arange(x.shape[1])]
        for block in e.blocks:
            x = block(x)
        return e.ln_post(x)

    def decode(
        self, tokens: list[Tensor], features: Tensor, counts: list[Tensor], rows: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Several token sequences (batch, length) for the same features: each attends to itself, all share one
        projection of the features.

        Returns per sequence the logits (n, vocabulary.size) of the n positions where `counts` (batch, length) is
        true, and per guided layer the log attention (batch, heads, all rows, frames) of the positions in `rows`.
        """
        d, heads = self.decoder, DIMS.n_text_head
        table, lengths = self.table(), [t.shape[1] for t in tokens]
        x = torch.cat([F.embedding(t, table) + d.positional_embedding[: t.shape[1]] for t in tokens], 1)
        picked = torch.cat([row + sum(lengths[:i]) for i, row in enumerate(rows)], 1)
        attention = []
        for i, block in enumerate(d.blocks):
            h = block.attn_ln(x).split(lengths, 1)
            x = x + torch.cat([block.attn(part, mask=d.mask)[0] for part in h], 1)
            cross = block.cross_attn
            query, key, value = (
                layer(z).unflatten(2, (heads, -1)).transpose(1, 2)
                for layer, z in ((cross.query, block.cross_attn_ln(x)), (cross.key, features), (cross.value, features))
            )
            if i in GUIDED:
                part = torch.gather(query, 2, picked[:, None, :, None].expand(-1, heads, -1, query.shape[3]))
                attention.append((part @ key.transpose(2, 3) * query.shape[3] ** -0.5).float().log_softmax(-1))
            seen = F.scaled_dot_product_attention(query, key, value)
            x = x + cross.out(seen.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.mlp_ln(x))
        other = torch.zeros(self.vocabulary.size)
        other[self.vocabulary.other] = torch.log(torch.tensor(float(self.vocabulary.n_other)))
        kept = (part[count] for part, count in zip(d.ln(x).split(lengths, 1), counts))
        return [(k @ table.T.to(k.dtype)).float() + other for k in kept], attention

    @torch.no_grad()
    def export(self, path: Path) -> None:
        """Writes openai-whisper's checkpoint in half precision; the file appears whole or not at all."""
        v, table = self.vocabulary, self.table()
        full = table[v.other].expand(DIMS.n_vocab, -1).clone()
        full[torch.tensor(v.ids)] = table[: v.other]
        full[v.timestamp_begin :] = table[v.time0 :]
        state = {f"encoder.{k}": t for k, t in self.encoder.state_dict().items()}
        state |= {f"decoder.{k}": t for k, t in self.decoder.state_dict().items()}
        state["decoder.token_embedding.weight"] = full
        temporary = path.with_suffix(".part")
        torch.save(
            {"dims": dataclasses.asdict(DIMS), "model_state_dict": {k: t.half() for k, t in state.items()}}, temporary
        )
        temporary.rename(path)


def guide_target(guides: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """guides (batch, rows, 4) in seconds of the window → row numbers (batch, rows) and attention targets
    (batch, rows, frames): evenly over the word, a seventh of the mass over the pause behind it; zero without a guide.

    The share of the pause makes word timestamps wait through a pause with the word before it.
    """
    centre = (torch.arange(frames) + 0.5) / 50
    row, start, end, gap = (guides[..., i : i + 1] for i in range(4))
    inside = ((centre >= start - 0.01) & (centre < end + 0.01) & (row >= 0)).float()
    behind = ((centre >= end + 0.01) & (centre < gap) & (row >= 0)).float()
    inside = inside / inside.sum(-1, keepdim=True).clamp(min=1)
    has_gap = (behind.sum(-1, keepdim=True) > 0) & (inside.sum(-1, keepdim=True) > 0)
    behind = behind / behind.sum(-1, keepdim=True).clamp(min=1)
    target = torch.where(has_gap, 0.86 * inside + 0.14 * behind, inside)
    return row[..., 0].clamp(min=0).long(), target
