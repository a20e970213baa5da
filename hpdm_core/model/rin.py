"""The RIN block: read, compute, write (Sec. 3.2, Fig. 11; Jabri et al. 2022).

The latents cross-attend to the conditioning and the data tokens, self-attend, and the data tokens
cross-attend to the latents. Cost is linear in the number of data tokens.

Axis legend: `b` batch, `n` data tokens, `m` latents, `k` conditioning tokens, `d` width.
"""

from torch import Tensor, nn

from hpdm_core.model.layers import CrossAttention, FeedForward, SelfAttention


class RINBlock(nn.Module):
    """Read, compute, write. Arguments are fields of a recipe's `model` section."""

    def __init__(
        self,
        *,
        data_width: int,
        latent_width: int,
        layers_per_block: int,
        latent_heads: int,
        latent_head_width: int,
        cross_heads: int,
        cross_head_width: int,
        mlp_ratio: int,
        dropout: float,
    ) -> None:
        super().__init__()
        data, latent, ratio = data_width, latent_width, mlp_ratio
        cross = {"heads": cross_heads, "head_width": cross_head_width}
        self.read_condition = CrossAttention(latent, latent, **cross)
        self.read_condition_mlp = FeedForward(latent, ratio=ratio)
        self.read_data = CrossAttention(latent, data, **cross)
        self.read_data_mlp = FeedForward(latent, ratio=ratio)
        self.compute = nn.ModuleList()
        for _ in range(layers_per_block):
            attention = SelfAttention(latent, heads=latent_heads, head_width=latent_head_width)
            mlp = FeedForward(latent, ratio=ratio, dropout=dropout)
            self.compute.append(nn.Sequential(attention, mlp))
        self.write = CrossAttention(data, latent, **cross)
        self.write_mlp = FeedForward(data, ratio=ratio)

    def forward(
        self,
        latents: Tensor,
        tokens: Tensor,
        condition: Tensor,
        condition_mask: Tensor | None,
        latents_only: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return the latents and the data tokens after the block.

        Args:
            latents: (b, m, latent_width).
            tokens: (b, n, data_width).
            condition: (b, k, latent_width).
            condition_mask: (b, k) bool, False where a conditioning token is to be ignored.
            latents_only: skip the write; the tokens are returned unchanged.
        """
        latents = self.read_condition(latents, condition, condition_mask)
        latents = self.read_condition_mlp(latents)
        latents = self.read_data(latents, tokens)
        latents = self.read_data_mlp(latents)
        for layer in self.compute:
            latents = layer(latents)
        if latents_only:
            return latents, tokens
        tokens = self.write(tokens, latents)
        tokens = self.write_mlp(tokens)
        return latents, tokens


class SelfConditioning(nn.Module):
    """Latent self-conditioning from an earlier pass: Z_init + LN0(Z' + MLP(Z'))."""

    def __init__(self, width: int, *, ratio: int) -> None:
        super().__init__()
        self.mlp = FeedForward(width, ratio=ratio)
        self.norm = nn.LayerNorm(width)

    def reset(self) -> None:
        """Initialise without effect: LN0's gain is zero."""
        nn.init.zeros_(self.norm.weight)

    def forward(self, start: Tensor, previous: Tensor) -> Tensor:
        """(b, m, d) initial latents and those of an earlier pass to (b, m, d)."""
        return start + self.norm(self.mlp(previous))
