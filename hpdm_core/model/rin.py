"""One block of the backbone: read, compute, write (Sec. 3.2, Fig. 11; Jabri et al. 2022).

The latents read the conditioning and the data tokens, think among themselves, and the data tokens
read them back. Cost is linear in the number of data tokens.

Axis legend: `b` batch, `n` data tokens, `m` latents, `k` conditioning tokens.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from hpdm_core.model.layers import CrossAttention, FeedForward, SelfAttention


@dataclass(frozen=True, kw_only=True)
class BlockSize:
    """Widths of a block (Table 8)."""

    data_width: int
    latent_width: int
    layers: int
    latent_heads: int
    latent_head_width: int
    cross_heads: int
    cross_head_width: int
    mlp_ratio: int
    dropout: float


class RINBlock(nn.Module):
    """Read, compute, write."""

    def __init__(self, size: BlockSize) -> None:
        super().__init__()
        data, latent, ratio = size.data_width, size.latent_width, size.mlp_ratio
        cross = {"heads": size.cross_heads, "head_width": size.cross_head_width}
        self.read_condition = CrossAttention(latent, latent, **cross)
        self.read_condition_mlp = FeedForward(latent, ratio=ratio)
        self.read_data = CrossAttention(latent, data, **cross)
        self.read_data_mlp = FeedForward(latent, ratio=ratio)
        self.compute = nn.ModuleList()
        for _ in range(size.layers):
            attention = SelfAttention(
                latent, heads=size.latent_heads, head_width=size.latent_head_width
            )
            mlp = FeedForward(latent, ratio=ratio, dropout=size.dropout)
            self.compute.append(nn.Sequential(attention, mlp))
        self.write = CrossAttention(data, latent, **cross)
        self.write_mlp = FeedForward(data, ratio=ratio)

    def forward(
        self, latents: Tensor, tokens: Tensor, condition: Tensor, condition_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the latents and the data tokens after the block.

        Args:
            latents: (b, m, latent_width).
            tokens: (b, n, data_width).
            condition: (b, k, latent_width).
            condition_mask: (b, k) bool, False where a conditioning token is to be ignored.
        """
        latents = self.read_condition(latents, condition, condition_mask)
        latents = self.read_condition_mlp(latents)
        latents = self.read_data(latents, tokens)
        latents = self.read_data_mlp(latents)
        for layer in self.compute:
            latents = layer(latents)
        tokens = self.write(tokens, latents)
        tokens = self.write_mlp(tokens)
        return latents, tokens
