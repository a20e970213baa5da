"""The whole network: a pyramid of patches through shared blocks (Sec. 4; Fig. 2, 3, 11).

Two equivalent passes through the same weights: `forward` takes all levels at once, as in training,
and `run_level` one level whose lower levels are known, as in tiled inference.

Axis legend: `b` batch, `c` channels, `t h w` video, `l` level, `n` data tokens, `m` latents,
`k` conditioning tokens, `d` width.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpdm_core.geometry.boxes import Box
from hpdm_core.geometry.resample import Grid
from hpdm_core.model.adaptive_computation import blocks_of, stack_levels, unstack_levels
from hpdm_core.model.conditioning import ConditioningTokens
from hpdm_core.model.context_sites import TOKENIZER
from hpdm_core.model.deep_context import DeepContextFusion
from hpdm_core.model.rin import RINBlock, SelfConditioning
from hpdm_core.model.shallow_context import ShallowContext
from hpdm_core.model.tokenizer import Detokenizer, Tokenizer
from hpdm_core.model.transformer import TransformerBlock
from hpdm_core.model.variants import DEEP_CONTEXTS, SharedBlocks
from hpdm_core.records import Condition, LevelOutput

TABLE_STD = 0.02
# A class must weigh as much as the noise level, to which blocks with adaptive norms add it: with
# 0.02, thousands of steps pass before a network heeds its class.
CLASS_STD = 1.0


class HPDM(nn.Module):
    """The denoising network of a hierarchical patch diffusion model.

    Args:
        patch: (t, h, w) pixels of a patch.
        self_conditioning: above 0, latents may start from those of an earlier pass.

    All others are the fields of a recipe's `model` section, which describes them. Those of the
    other kind of block are not used.
    """

    def __init__(
        self,
        *,
        patch: Grid,
        token: Grid,
        block: Literal["rin", "transformer", "shared_rin"],
        data_width: int,
        latent_width: int | None,
        num_latents: int | None,
        layers_per_block: int,
        latent_heads: int,
        latent_head_width: int,
        cross_heads: int,
        cross_head_width: int,
        head_width: int,
        mlp_ratio: int,
        levels_per_block: tuple[int, ...],
        context: Literal["deep", "shallow", "concatenated", "averaged", "sinusoidal"],
        detach_context: bool,
        coordinates: bool,
        positions: Literal["learned", "factorised"],
        conditioning: Literal["none", "class", "text"],
        num_classes: int | None,
        condition_width: int,
        self_conditioning: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.patch, self.levels_per_block = patch, levels_per_block
        self.grid = tuple(p // t for p, t in zip(patch, token, strict=True))  # tokens of a patch
        self.activation_checkpointing = False
        rin, levels = block != "transformer", max(levels_per_block)
        self.tokenizer = Tokenizer(
            token,
            self.grid,
            data_width,
            positions=positions,
            shallow_context=context == "shallow" and levels > 1,
            coordinates=coordinates,
        )
        self.latents = nn.Parameter(torch.empty(num_latents, latent_width)) if rin else None
        self.self_conditioning = (
            SelfConditioning(latent_width, ratio=mlp_ratio) if self_conditioning > 0 else None
        )
        self.conditioning = ConditioningTokens(
            latent_width if rin else data_width,
            num_classes=num_classes if conditioning == "class" else None,
            condition_width=None if conditioning == "none" else condition_width,
        )
        self.fusion = (
            ShallowContext(self.tokenizer, patch=patch, grid=self.grid, levels=levels)
            if context == "shallow"
            else DEEP_CONTEXTS[context](
                data_width,
                grid=self.grid,
                levels_per_block=levels_per_block,
                coordinates=coordinates,
                detach=detach_context,
            )
        )
        sizes = {
            "data_width": data_width,
            "layers_per_block": layers_per_block,
            "mlp_ratio": mlp_ratio,
            "dropout": dropout,
        }
        if rin:
            sizes |= {"latent_width": latent_width, "latent_heads": latent_heads}
            sizes |= {"latent_head_width": latent_head_width}
            sizes |= {"cross_heads": cross_heads, "cross_head_width": cross_head_width}
        else:
            sizes |= {"head_width": head_width, "conditioning": conditioning}
        kind = RINBlock if rin else TransformerBlock
        blocks = SharedBlocks if block == "shared_rin" else nn.ModuleList
        self.blocks = blocks(kind(**sizes) for _ in levels_per_block)
        self.detokenizer = Detokenizer(token, self.grid, data_width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform linear layers, zero biases, normal tables; identity fusion.

        Position embeddings start as sinusoids, latents with a standard deviation of 0.02.
        """
        for _, unit in self._units():
            _reset_layers(unit)
        with torch.no_grad():
            for (_, table), value in zip(self._tables(), self._initial_tables(), strict=True):
                table.copy_(value)

    def initial_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and initial value of every parameter, of a network on the meta device.

        The values of `reset_parameters` after the same seed, but only one block is in memory at a
        time. On the CPU.
        """
        tables = [name for name, _ in self._tables()]
        for name, unit in self._units():
            _reset_layers(unit.to_empty(device="cpu"))
            named = ((f"{name}.{key}", value) for key, value in unit.named_parameters())
            yield from ((key, value.detach()) for key, value in named if key not in tables)
            unit.to_empty(device="meta")
        yield from zip(tables, self._initial_tables(), strict=True)

    def _units(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the parts that are initialised one after the other, each block by itself."""
        for name, child in self.named_children():
            if child is self.blocks:
                yield from ((f"{name}.{index}", block) for index, block in enumerate(child))
            else:
                yield name, child

    def _tables(self) -> Iterator[tuple[str, Tensor]]:
        if self.latents is not None:
            yield "latents", self.latents
        for index, table in enumerate(self.tokenizer.positions.tables):
            yield f"tokenizer.positions.tables.{index}", table

    def _initial_tables(self) -> Iterator[Tensor]:
        if self.latents is not None:
            latents = torch.empty_like(self.latents, device="cpu", requires_grad=False)
            yield nn.init.trunc_normal_(latents, std=TABLE_STD)
        yield from self.tokenizer.positions.initial()

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute blocks in the backward pass, to save memory."""
        self.activation_checkpointing = enabled

    def forward(
        self,
        inputs: tuple[Tensor, ...],
        c_noise: Tensor,
        boxes: tuple[Box, ...],
        condition: Condition,
        latents: tuple[Tensor, ...] | None = None,
        *,
        latents_only: bool = False,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Run all levels of a pyramid together, each block on all its levels in one call.

        Args:
            inputs: per level (b, c, t, h, w), scaled to unit variance; fewer levels than the
                pyramid has are the coarsest ones (level dropout).
            c_noise: (b, l), ln(sigma) / 4.
            boxes: per level (b, 3) boxes in the full video.
            condition: (b,) rows.
            latents: per level (b, m, d) final latents of an earlier pass.
            latents_only: leave out the last write and the outputs, which are then ().

        Returns:
            per level the output (b, c, t, h, w), and the final latents (b, m, d).
        """
        levels, batch = len(inputs), len(inputs[0])
        links = [self.fusion.links(boxes[: level + 1]) for level in range(levels)]

        def terms(site: int, features: Sequence[Tensor]) -> list[Tensor | None]:
            return [self.fusion.term(site, features[:k], links[k]) for k in range(len(features))]

        tokens = self._tokenize(inputs, terms(TOKENIZER, inputs))  # l x (b, n, d)
        previous = [None] * levels if latents is None else latents
        pairs = zip(inputs, previous, strict=False)
        states = [self._start_latents(x, latent) for x, latent in pairs]  # l x (b, m, d)
        rows = condition.select(torch.arange(batch, device=c_noise.device).repeat(levels))
        cond = self.conditioning(c_noise.t().flatten(), rows)  # (l b, k, d), (l b, k)
        for index, load in enumerate(self.levels_per_block):
            own = slice(min(load, levels))
            states[own], tokens[own] = self._run_block(
                index,
                states[own],
                tokens[own],
                terms=terms(index, tokens[own]),
                condition=cond,
                latents_only=latents_only and index == len(self.levels_per_block) - 1,
            )
        if latents_only:
            return (), tuple(states)
        outputs = unstack_levels(self.detokenizer(stack_levels(tokens)), levels)
        return tuple(outputs), tuple(states)

    def run_level(
        self,
        inputs: Tensor,
        c_noise: Tensor,
        *,
        level: int,
        condition: Condition,
        context: tuple[Tensor, ...],
        latents: Tensor | None,
        latents_only: bool = False,
    ) -> LevelOutput:
        """Run one level whose context is known.

        Args:
            inputs: (b, c, t, h, w), scaled to unit variance.
            c_noise: (b,), ln(sigma) / 4.
            level: which level the patches belong to.
            condition: (b,) rows.
            context: what `context` returned for these patches; empty on level 0.
            latents: (b, m, d) final latents of an earlier pass.
            latents_only: leave out the last write and the output, which is then empty, (0,).

        Returns:
            the output, the final latents, and what finer levels need of this one.
        """
        terms = dict(zip(self.fusion.sites(level), context, strict=True))
        read_by_finer = self.fusion.sites(level + 1)
        features = [inputs] if TOKENIZER in read_by_finer else []
        (tokens,) = self._tokenize([inputs], [terms.get(TOKENIZER)])  # (b, n, d)
        state = self._start_latents(inputs, latents)  # (b, m, d)
        cond = self.conditioning(c_noise, condition)  # (b, k, d), (b, k)
        own = blocks_of(self.levels_per_block, level)
        for index in own:
            if index in read_by_finer:
                features.append(tokens)
            (state,), (tokens,) = self._run_block(
                index,
                [state],
                [tokens],
                terms=[terms.get(index)],
                condition=cond,
                latents_only=latents_only and index == own[-1],
            )
        output = inputs.new_empty(0) if latents_only else self.detokenizer(tokens)
        return LevelOutput(output=output, latents=state, features=tuple(features))

    def context(
        self, features: Sequence[tuple[Tensor, ...]], boxes: tuple[Box, ...]
    ) -> tuple[Tensor, ...]:
        """Return the context terms of patches whose lower levels' features are known.

        Args:
            features: per lower level the features of `run_level`, one row per patch.
            boxes: per level, the patches' own last, (b, 3) boxes in the full video.

        Returns:
            (b, n, d) per site of the patches' level: each block (deep), or the tokenizer (shallow).
        """
        level, links = len(boxes) - 1, self.fusion.links(boxes)
        kept = [dict(zip(self.fusion.sites(k + 1), features[k], strict=True)) for k in range(level)]
        return tuple(
            self.fusion.term(site, [lower[site] for lower in kept], links)
            for site in self.fusion.sites(level)
        )

    def _tokenize(self, inputs: Sequence[Tensor], terms: Sequence[Tensor | None]) -> list[Tensor]:
        embedded = unstack_levels(self.tokenizer.embed(stack_levels(inputs)), len(inputs))
        return unstack_levels(self.tokenizer(self._fuse(TOKENIZER, embedded, terms)), len(inputs))

    def _fuse(self, site: int, tokens: Sequence[Tensor], terms: Sequence[Tensor | None]) -> Tensor:
        pairs = zip(tokens, terms, strict=True)
        return stack_levels([self.fusion.fuse(site, own, term) for own, term in pairs])

    def _run_block(
        self,
        index: int,
        latents: Sequence[Tensor],
        tokens: Sequence[Tensor],
        *,
        terms: Sequence[Tensor | None],
        condition: tuple[Tensor, Tensor | None],
        latents_only: bool = False,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Fuse context into the tokens of some levels and run a block on all of them in one call.

        `condition` may have rows of finer levels too, which come last.
        """
        block, levels = self.blocks[index], len(tokens)
        fused = self._fuse(index, tokens, terms)  # (l b, n, d)
        cond, mask = (None if x is None else x[: len(fused)] for x in condition)
        arguments = (stack_levels(latents), fused, cond, mask, latents_only)
        if self.activation_checkpointing and torch.is_grad_enabled():
            state, fine = checkpoint(block, *arguments, use_reentrant=False)
        else:
            state, fine = block(*arguments)
        return unstack_levels(state, levels), unstack_levels(fine, levels)

    def _start_latents(self, inputs: Tensor, previous: Tensor | None) -> Tensor:
        """Return (b, m, d); m is 0 for blocks without latents."""
        if self.latents is None:
            return inputs.new_empty(len(inputs), 0, 0)
        start = self.latents.expand(len(inputs), -1, -1)
        if self.self_conditioning is None:
            return start
        if previous is None:
            previous = torch.zeros_like(start)
        return self.self_conditioning(start, previous)


def _reset_layers(unit: nn.Module) -> None:
    for module in unit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=CLASS_STD)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    for module in unit.modules():
        if isinstance(module, DeepContextFusion | SelfConditioning | TransformerBlock):
            module.reset()
