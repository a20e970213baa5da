"""The whole network: a pyramid of patches through shared RIN blocks (Sec. 4; Fig. 2, 3, 11).

Two ways through the same weights, which agree: `forward` takes all levels at once, as in training,
and `run_level` one level whose lower levels are known, as in tiled inference.

Axis legend: `b` batch, `c` channels, `t h w` video, `l` level, `n` data tokens, `m` latents,
`d` width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpdm_core.geometry.boxes import Box
from hpdm_core.geometry.resample import Grid, Resampler, cell_centres, make_resampler
from hpdm_core.model.adaptive_computation import first_block, stack_levels, unstack_levels
from hpdm_core.model.conditioning import ConditioningTokens
from hpdm_core.model.deep_context_fusion import DeepContextFusion, pooled_context
from hpdm_core.model.layers import FeedForward
from hpdm_core.model.rin import BlockSize, RINBlock
from hpdm_core.model.tokenizer import Detokenizer, Tokenizer
from hpdm_core.records import Condition, LevelOutput

TABLE_STD = 0.02


class SelfConditioning(nn.Module):
    """Start latents from those of an earlier pass: Z_init + LN0(Z' + MLP(Z')) (RIN)."""

    def __init__(self, width: int, *, ratio: int) -> None:
        super().__init__()
        self.mlp = FeedForward(width, ratio=ratio)
        self.norm = nn.LayerNorm(width)

    def forward(self, start: Tensor, previous: Tensor) -> Tensor:
        return start + self.norm(self.mlp(previous))


@dataclass(frozen=True, kw_only=True)
class NetworkSize:
    """Shapes of the network (Table 8), apart from its blocks' widths."""

    patch: Grid
    token: Grid
    num_latents: int
    levels_per_block: tuple[int, ...]
    block: BlockSize
    num_classes: int | None
    condition_width: int | None

    @property
    def grid(self) -> Grid:
        """Tokens of a patch per axis."""
        return tuple(p // t for p, t in zip(self.patch, self.token, strict=True))


class HPDM(nn.Module):
    """The denoising network of a hierarchical patch diffusion model.

    Args:
        size: shapes.
        context: 'deep' fuses features of all lower levels before each block; 'shallow' reads the
            RGB of the level below at the tokenizer (Table 3, row 1).
        detach_context: stop gradients from finer to coarser levels (Table 3, row 2).
        coordinates: give finer levels each token's place in the video (Table 3, row 4).
        positions: kind of the tokens' position table.
        self_conditioning: whether latents may start from those of an earlier pass.
    """

    def __init__(
        self,
        size: NetworkSize,
        *,
        context: Literal["deep", "shallow"],
        detach_context: bool,
        coordinates: bool,
        positions: Literal["learned", "factorised"],
        self_conditioning: bool,
    ) -> None:
        super().__init__()
        self.size = size
        self.detach_context = detach_context
        self.shallow = context == "shallow"
        self.activation_checkpointing = False
        data, latent = size.block.data_width, size.block.latent_width
        self.tokenizer = Tokenizer(
            size.token,
            size.grid,
            data,
            positions=positions,
            shallow_context=self.shallow and size.levels_per_block[-1] > 1,
            coordinates=coordinates,
        )
        self.latents = nn.Parameter(torch.empty(size.num_latents, latent))
        self.self_conditioning = (
            SelfConditioning(latent, ratio=size.block.mlp_ratio) if self_conditioning else None
        )
        self.conditioning = ConditioningTokens(
            latent, num_classes=size.num_classes, condition_width=size.condition_width
        )
        # Only blocks that a finer level enters own fusion weights: none would ever be idle.
        self.fusion = nn.ModuleDict(
            {
                str(index): DeepContextFusion(data, coordinates=coordinates)
                for index, load in enumerate(size.levels_per_block)
                if load > 1 and not self.shallow
            }
        )
        self.blocks = nn.ModuleList([RINBlock(size.block) for _ in size.levels_per_block])
        self.detokenizer = Detokenizer(size.token, size.grid, data)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform linear layers, zero biases, tables at 0.02, fusion at the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=TABLE_STD)
        for table in (self.latents, *self.tokenizer.positions.tables):
            nn.init.trunc_normal_(table, std=TABLE_STD)
        if self.self_conditioning is not None:
            nn.init.zeros_(self.self_conditioning.norm.weight)
        for fusion in self.fusion.values():
            fusion.reset()

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute blocks in the backward pass, to save memory."""
        self.activation_checkpointing = enabled

    def forward(
        self,
        inputs: tuple[Tensor, ...],
        noise_labels: Tensor,
        boxes: tuple[Box, ...],
        condition: Condition,
        latents: tuple[Tensor, ...] | None = None,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Run all levels of a pyramid together, each block on all its levels in one call.

        Args:
            inputs: per level (b, c, t, h, w), scaled to unit variance; fewer levels than the
                pyramid has are the coarsest ones (pyramid cuts).
            noise_labels: (b, l), ln(sigma) / 4.
            boxes: per level (b, 3) boxes in the full video.
            condition: (b,) rows.
            latents: per level (b, m, d) final latents of an earlier pass.

        Returns:
            per level the output (b, c, t, h, w), and the final latents (b, m, d).
        """
        levels, batch = len(inputs), len(inputs[0])
        links = [self._links(boxes, level) for level in range(levels)]
        tokens = self._tokenize(inputs, links)  # l x (b, n, d)
        states = [  # l x (b, m, d)
            self._start_latents(batch, None if latents is None else latents[level])
            for level in range(levels)
        ]
        rows = condition.select(torch.arange(batch, device=noise_labels.device).repeat(levels))
        cond, mask = self.conditioning(noise_labels.t().flatten(), rows)  # (l b, k, d), (l b, k)
        for index, (block, load) in enumerate(
            zip(self.blocks, self.size.levels_per_block, strict=True)
        ):
            active = min(load, levels)
            fused = [tokens[0]]
            for level in range(1, active):
                fused.append(self._fuse(index, tokens[level], tokens[:level], links[level]))
            count = active * batch
            state, fine = self._run_block(
                block,
                stack_levels(states[:active]),
                stack_levels(fused),
                cond[:count],
                None if mask is None else mask[:count],
            )
            states[:active] = unstack_levels(state, active)
            tokens[:active] = unstack_levels(fine, active)
        outputs = unstack_levels(self.detokenizer(stack_levels(tokens)), levels)
        return tuple(outputs), tuple(states)

    def run_level(
        self,
        inputs: Tensor,
        noise_labels: Tensor,
        *,
        level: int,
        condition: Condition,
        context: tuple[Tensor, ...],
        latents: Tensor | None,
    ) -> LevelOutput:
        """Run one level whose context is known.

        Args:
            inputs: (b, c, t, h, w), scaled to unit variance.
            noise_labels: (b,), ln(sigma) / 4.
            level: which level the patches belong to.
            condition: (b,) rows.
            context: what `context` returned for these patches; empty on level 0.
            latents: (b, m, d) final latents of an earlier pass.

        Returns:
            the output, the final latents, and what finer levels need of this one.
        """
        start = first_block(self.size.levels_per_block, level)
        shallow = self.shallow and level > 0
        tokens = self.tokenizer(inputs, context[0] if shallow else None)
        state = self._start_latents(len(inputs), latents)
        cond, mask = self.conditioning(noise_labels, condition)
        features = [inputs] if self.shallow else []
        for index in range(start, len(self.blocks)):
            if not self.shallow and self.size.levels_per_block[index] > level + 1:
                features.append(tokens)  # from the first block that level + 1 enters
            if level > 0 and not self.shallow:
                tokens = self.fusion[str(index)](tokens, context[index - start])
            state, tokens = self.blocks[index](state, tokens, cond, mask)
        output = self.detokenizer(tokens)
        return LevelOutput(output=output, latents=state, features=tuple(features))

    def context(
        self, features: Sequence[tuple[Tensor, ...]], boxes: tuple[Box, ...]
    ) -> tuple[Tensor, ...]:
        """Return the context terms of patches whose lower levels' features are known.

        Args:
            features: per lower level the features of `run_level`, one row per patch.
            boxes: per level, the patches' own last, (b, 3) boxes in the full video.

        Returns:
            (b, n, d) per block that the patches' level enters (deep), or once (shallow).
        """
        level = len(boxes) - 1
        if level == 0:
            return ()
        links = self._links(boxes, level)
        if self.shallow:
            return (self._shallow_term(features[-1][0], links),)
        loads = self.size.levels_per_block
        terms = []
        for index in range(first_block(loads, level), len(self.blocks)):
            ancestors = [features[k][index - first_block(loads, k + 1)] for k in range(level)]
            terms.append(self._deep_term(index, ancestors, links))
        return tuple(terms)

    def _links(self, boxes: tuple[Box, ...], level: int) -> "Links":
        box, grid = boxes[level], self.size.grid
        return Links(
            coordinates=cell_centres(box, grid),
            relative=tuple(box.relative_to(boxes[k]) for k in range(level)),
            resamplers=tuple(make_resampler(box.relative_to(boxes[k]), grid) for k in range(level)),
        )

    def _tokenize(self, inputs: tuple[Tensor, ...], links: "list[Links]") -> list[Tensor]:
        if not self.shallow:
            return unstack_levels(self.tokenizer(stack_levels(inputs)), len(inputs))
        tokens = [self.tokenizer(inputs[0])]
        for level in range(1, len(inputs)):
            term = self._shallow_term(inputs[level - 1], links[level])
            tokens.append(self.tokenizer(inputs[level], term))
        return tokens

    def _shallow_term(self, coarse: Tensor, links: "Links") -> Tensor:
        """Return the tokenizer's term of the level below: (b, c, t, h, w) to (b, n, d)."""
        pixels = make_resampler(links.relative[-1], self.size.patch)(coarse.movedim(1, -1))
        return self.tokenizer.context_term(pixels.movedim(-1, 1), links.coordinates)

    def _deep_term(self, index: int, ancestors: Sequence[Tensor], links: "Links") -> Tensor:
        if self.detach_context:
            ancestors = [features.detach() for features in ancestors]
        pooled = pooled_context(ancestors, links.resamplers, self.size.grid)
        return self.fusion[str(index)].context_term(pooled, links.coordinates)

    def _fuse(
        self, index: int, tokens: Tensor, ancestors: Sequence[Tensor], links: "Links"
    ) -> Tensor:
        if self.shallow:
            return tokens
        return self.fusion[str(index)](tokens, self._deep_term(index, ancestors, links))

    def _start_latents(self, batch: int, previous: Tensor | None) -> Tensor:
        start = self.latents.expand(batch, -1, -1)
        if self.self_conditioning is None:
            return start
        if previous is None:
            previous = torch.zeros_like(start)
        return self.self_conditioning(start, previous)

    def _run_block(
        self, block: RINBlock, latents: Tensor, tokens: Tensor, cond: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, latents, tokens, cond, mask, use_reentrant=False)
        return block(latents, tokens, cond, mask)


@dataclass(frozen=True, kw_only=True)
class Links:
    """Where a level's patches lie, in the video and in their ancestors.

    Args:
        coordinates: (b, n, 3) centres of the tokens in the full video, in [-1, 1].
        relative: per lower level the (b, 3) box in that level's patch (Eq. 8).
        resamplers: per lower level the resampling of its tokens at that box.
    """

    coordinates: Tensor
    relative: tuple[Box, ...]
    resamplers: tuple[Resampler, ...]
