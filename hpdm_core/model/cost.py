"""FLOPs and memory of the network, counted from its layers' shapes.

FLOPs are those of matrix products, a multiply-add being 2, as in torch's FLOP counter.
Memory is what autograd keeps for the backward pass, counted in numbers: normalised inputs, queries,
keys and values, attention outputs and both sides of each GELU; attention weights are not kept
(fused attention). Tests compare both with what torch measures. Everything works on the meta
device without a forward pass, which is slow for billions of weights.

Symbols: `n` data tokens, `m` latents, `k` conditioning tokens of one patch.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from hpdm_core.model.adaptive_computation import blocks_of
from hpdm_core.model.context_sites import TOKENIZER
from hpdm_core.model.hpdm import HPDM
from hpdm_core.model.layers import CrossAttention, FeedForward, SelfAttention
from hpdm_core.model.rin import RINBlock
from hpdm_core.model.tokenizer import CHANNELS
from hpdm_core.model.transformer import TransformerBlock

Block = RINBlock | TransformerBlock


@dataclass(frozen=True, kw_only=True)
class Rows:
    """How many rows of each kind a patch has.

    Args:
        n: data tokens.
        m: latents.
        k: conditioning tokens.
    """

    n: int
    m: int
    k: int


def patch_rows(network: HPDM, *, text_tokens: int) -> Rows:
    """Return the rows of one patch.

    Args:
        network: on any device.
        text_tokens: tokens of a prompt, for networks that read texts.
    """
    conditioning = network.conditioning
    given = 1 if conditioning.classes is not None else text_tokens
    return Rows(
        n=math.prod(network.grid),
        m=0 if network.latents is None else len(network.latents),
        k=1 if conditioning.project is None else 1 + given,
    )


def level_flops(network: HPDM, level: int, *, text_tokens: int) -> int:
    """Return the operations of one forward pass of one patch of `level`, its context included."""
    rows = patch_rows(network, text_tokens=text_tokens)
    conditioning = network.conditioning
    total = _linear(conditioning.noise.up, 1) + _linear(conditioning.noise.down, 1)
    if conditioning.project is not None:
        total += _linear(conditioning.project, rows.k - 1)
    total += _linear(network.tokenizer.project, rows.n)
    total += _linear(network.detokenizer.project, rows.n)
    if network.self_conditioning is not None:
        total += _layer_flops(network.self_conditioning.mlp, rows.m, 0)
    total += sum(_context_flops(network, site, level) for site in network.fusion.sites(level))
    for index in blocks_of(network.levels_per_block, level):
        total += block_flops(network.blocks[index], rows)
    return total


def block_flops(block: Block, rows: Rows) -> int:
    """Return the operations of one pass of a block on one patch."""
    return sum(_layer_flops(*call) for call in _calls(block, rows))


def kept_numbers(network: HPDM, *, text_tokens: int, checkpointing: bool) -> int:
    """Return how many numbers one video's pyramid keeps for the backward pass.

    Args:
        network: on any device.
        text_tokens: tokens of a prompt, for networks that read texts.
        checkpointing: whether blocks are recomputed in the backward pass.
    """
    rows, loads = patch_rows(network, text_tokens=text_tokens), network.levels_per_block
    width, levels = network.detokenizer.project.in_features, max(loads)
    blocks = [
        load * sum(_layer_kept(*call) for call in _calls(network.blocks[index], rows))
        for index, load in enumerate(loads)
    ]
    inside = sum(blocks)
    if checkpointing:
        inside = max(blocks) + sum(loads) * (rows.n * width + _latent_numbers(network))
    sites = sum(len(network.fusion.sites(level)) for level in range(levels))
    fusion = sites * rows.n * (3 * width + 3)
    ends = levels * (2 * CHANNELS * math.prod(network.patch) + 4 * rows.n * width)
    return inside + fusion + ends


def tile_numbers(network: HPDM) -> int:
    """Estimate the activations alive while a block runs on one tile, without gradients."""
    rows, block = patch_rows(network, text_tokens=1), network.blocks[0]
    states = rows.n * network.detokenizer.project.in_features + _latent_numbers(network)
    # A layer's input, its normalised form and its output, besides its inner activations.
    return 3 * states + max(_layer_live(*call) for call in _calls(block, rows))


def _latent_numbers(network: HPDM) -> int:
    return 0 if network.latents is None else network.latents.numel()


def _calls(block: Block, rows: Rows) -> Iterator[tuple[nn.Module, int, int]]:
    """Yield what a block runs on one patch: layer, its rows, and rows that it reads."""
    n, m, k = rows.n, rows.m, rows.k
    if isinstance(block, TransformerBlock):
        if block.read_text is not None:
            yield block.read_text, n, k
        for layer in block.layers:
            yield layer.modulation, 1, 0
            yield layer.attention, n, 0
            yield layer.mlp, n, 0
        return
    yield block.read_condition, m, k
    yield block.read_condition_mlp, m, 0
    yield block.read_data, m, n
    yield block.read_data_mlp, m, 0
    for attention, mlp in block.compute:
        yield attention, m, 0
        yield mlp, m, 0
    yield block.write, n, m
    yield block.write_mlp, n, 0


def _layer_flops(layer: nn.Module, rows: int, sources: int) -> int:
    if isinstance(layer, nn.Linear):
        return _linear(layer, rows)
    if isinstance(layer, FeedForward):
        return _linear(layer.up, rows) + _linear(layer.down, rows)
    inner = layer.to_out.in_features
    if isinstance(layer, SelfAttention):
        products = 2 * 2 * rows * rows * inner  # scores, then values
        return _linear(layer.to_qkv, rows) + products + _linear(layer.to_out, rows)
    products = 2 * 2 * rows * sources * inner
    ends = _linear(layer.to_q, rows) + _linear(layer.to_out, rows)
    return ends + _linear(layer.to_kv, sources) + products


def _layer_kept(layer: nn.Module, rows: int, sources: int) -> int:
    """Return the numbers that a layer keeps for the backward pass."""
    if isinstance(layer, nn.Linear):
        return rows * (layer.in_features + layer.out_features)
    # A modulated norm keeps its own output too, and its gate what it multiplies.
    ends = 2 if isinstance(layer, CrossAttention) or layer.norm.elementwise_affine else 4
    if isinstance(layer, FeedForward):
        return rows * (ends * layer.up.in_features + 2 * layer.up.out_features)
    inner = layer.to_out.in_features
    if isinstance(layer, SelfAttention):
        return rows * (ends * layer.to_qkv.in_features + 4 * inner)
    read = sources * (2 * layer.to_kv.in_features + 2 * inner)
    return rows * (2 * layer.to_q.in_features + 2 * inner) + read


def _layer_live(layer: nn.Module, rows: int, sources: int) -> int:
    """Return the inner activations of a layer while it runs."""
    if isinstance(layer, nn.Linear):
        return rows * layer.out_features
    if isinstance(layer, FeedForward):
        return rows * 2 * layer.up.out_features
    inner = layer.to_out.in_features
    if isinstance(layer, SelfAttention):
        return rows * 4 * inner
    return (rows + sources) * 2 * inner


def _context_flops(network: HPDM, site: int, level: int) -> int:
    if site == TOKENIZER:  # the level below's pixels, resampled along each axis in turn
        resampled = 2 * CHANNELS * math.prod(network.patch) * sum(network.patch)
        projection = network.tokenizer.project_context
    else:  # the tokens of all lower levels
        projection = network.fusion[str(site)].project
        width = projection.out_features
        resampled = level * 2 * math.prod(network.grid) * width * sum(network.grid)
    return resampled + _linear(projection, math.prod(network.grid))


def _linear(layer: nn.Linear, rows: int) -> int:
    return 2 * rows * layer.weight.numel()
