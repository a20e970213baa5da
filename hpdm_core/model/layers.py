"""Attention and feed-forward layers: pre-norm, biased, residual (design of SnapVideo's FIT block).

Axis legend: `b` batch, `n` queries, `m` keys, `d` width.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# Scores of one call up to which they are stored: 32 MiB in bfloat16.
MAX_STORED_SCORES = 1 << 24


def attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention: torch's, but for bfloat16 on CPUs.

    There torch's kernel, forward and backward, takes 1.6 to 4.4 times as long as plain matrix
    products (`benchmarks/attention.py`), which store the scores and so are only used while these
    are few.

    Args:
        q: (b, h, n, d) queries.
        k: (b, h, m, d) keys.
        v: (b, h, m, d) values.
        allowed: bool, broadcast to (b, h, n, m): which keys a query may read; None: all.

    Returns:
        (b, h, n, d).
    """
    few = q.shape[:-1].numel() * k.shape[-2] <= MAX_STORED_SCORES
    if not (few and q.device.type == "cpu" and q.dtype == torch.bfloat16):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return scores.softmax(dim=-1) @ v


class SelfAttention(nn.Module):
    """Multi-head self-attention with a residual.

    Args:
        width: width of the tokens.
        heads: number of heads.
        head_width: width of a head; heads * head_width need not be `width`.
        affine: whether the norm has weights; without where a condition modulates it.
    """

    def __init__(self, width: int, *, heads: int, head_width: int, affine: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=affine)
        self.to_qkv = nn.Linear(width, 3 * heads * head_width)
        self.to_out = nn.Linear(heads * head_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus attention over its norm; (b, n, d) in and out."""
        return x + self.attend(self.norm(x))

    def attend(self, x: Tensor) -> Tensor:
        """Return attention over normalised tokens, without the residual; (b, n, d) in and out."""
        qkv = self.to_qkv(x)
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        y = attention(q, k, v)
        return self.to_out(rearrange(y, "b h n d -> b n (h d)"))


class CrossAttention(nn.Module):
    """Multi-head attention from `x` to `source` with a residual on `x`; both are normalised.

    Args:
        width: width of the reading tokens.
        source_width: width of the tokens that are read.
        heads: number of heads.
        head_width: width of a head.
    """

    def __init__(self, width: int, source_width: int, *, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.norm_source = nn.LayerNorm(source_width)
        self.to_q = nn.Linear(width, heads * head_width)
        self.to_kv = nn.Linear(source_width, 2 * heads * head_width)
        self.to_out = nn.Linear(heads * head_width, width)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return x plus what it reads.

        Args:
            x: (b, n, d) tokens that read.
            source: (b, m, d) tokens that are read.
            mask: (b, m) bool, False where a source token is to be ignored.
        """
        q = rearrange(self.to_q(self.norm(x)), "b n (h d) -> b h n d", h=self.heads)
        kv = self.to_kv(self.norm_source(source))
        k, v = rearrange(kv, "b m (two h d) -> two b h m d", two=2, h=self.heads)
        allowed = None if mask is None else rearrange(mask, "b m -> b 1 1 m")
        y = attention(q, k, v, allowed)
        return x + self.to_out(rearrange(y, "b h n d -> b n (h d)"))


class FeedForward(nn.Module):
    """Two linear layers around a GELU, with a residual.

    Args:
        width: width of the tokens.
        ratio: hidden width over `width`.
        dropout: probability of dropping a hidden unit in training.
        affine: whether the norm has weights; without where a condition modulates it.
    """

    def __init__(
        self, width: int, *, ratio: int, dropout: float = 0.0, affine: bool = True
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=affine)
        self.up = nn.Linear(width, ratio * width)
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus the MLP of its norm; (b, n, d) in and out."""
        return x + self.transform(self.norm(x))

    def transform(self, x: Tensor) -> Tensor:
        """Return the MLP of normalised tokens, without the residual."""
        return self.down(self.dropout(F.gelu(self.up(x))))
