"""The transformer block: self-attention over the data tokens, adaptive norms (DiT, Peebles 2023).

The second backbone, with the same interface as the RIN block; there are no latents. Cost is
quadratic in the number of data tokens of a patch.

Axis legend: `b` batch, `n` data tokens, `k` conditioning tokens, `d` width.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from hpdm_core.model.layers import CrossAttention, FeedForward, SelfAttention


class TransformerBlock(nn.Module):
    """Layers of self-attention and MLP. Arguments are fields of a recipe's `model` section.

    The noise level and the class modulate every layer; the tokens of a text are read by
    cross-attention, once per block.
    """

    def __init__(
        self,
        *,
        data_width: int,
        layers_per_block: int,
        head_width: int,
        mlp_ratio: int,
        conditioning: Literal["none", "class", "text"],
        dropout: float,
    ) -> None:
        super().__init__()
        heads = data_width // head_width
        self.read_text = (
            CrossAttention(data_width, data_width, heads=heads, head_width=head_width)
            if conditioning == "text"
            else None
        )
        self.layers = nn.ModuleList(
            TransformerLayer(
                data_width, heads=heads, head_width=head_width, ratio=mlp_ratio, dropout=dropout
            )
            for _ in range(layers_per_block)
        )

    def reset(self) -> None:
        """Initialise as the identity: gates and the output of cross-attention are zero."""
        outputs = [layer.modulation for layer in self.layers]
        if self.read_text is not None:
            outputs.append(self.read_text.to_out)
        for linear in outputs:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        latents: Tensor,
        tokens: Tensor,
        condition: Tensor,
        condition_mask: Tensor | None,
        latents_only: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return the latents unchanged, and the data tokens after the block.

        Args:
            latents: (b, 0, 0), none.
            tokens: (b, n, d).
            condition: (b, k, d); the first is the noise level, then a class or a text.
            condition_mask: (b, k) bool, False where a token of a text is to be ignored.
            latents_only: do nothing, for there are no latents.
        """
        if latents_only:
            return latents, tokens
        if self.read_text is None:
            modulation = F.silu(condition.sum(1))  # (b, d)
        else:
            # The noise level is read too, so that attention has a key where there is no text.
            modulation = F.silu(condition[:, 0])
            tokens = self.read_text(tokens, condition, condition_mask)
        for layer in self.layers:
            tokens = layer(tokens, modulation)
        return latents, tokens


class TransformerLayer(nn.Module):
    """Self-attention and an MLP, each with a shift, scale and gate from the condition (adaLN-Zero).

    Args:
        width: width of the tokens.
        heads: number of heads.
        head_width: width of a head.
        ratio: hidden width of the MLP over `width`.
        dropout: probability of dropping a hidden unit of it in training.
    """

    def __init__(
        self, width: int, *, heads: int, head_width: int, ratio: int, dropout: float
    ) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.attention = SelfAttention(width, heads=heads, head_width=head_width, affine=False)
        self.mlp = FeedForward(width, ratio=ratio, dropout=dropout, affine=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(b, n, d) tokens and (b, d) condition to (b, n, d)."""
        parts = self.modulation(condition)[:, None].chunk(6, dim=-1)  # 6 x (b, 1, d)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        x = x + gate * self.attention.attend(self.attention.norm(x) * (1 + scale) + shift)
        return x + mlp_gate * self.mlp.transform(self.mlp.norm(x) * (1 + mlp_scale) + mlp_shift)
