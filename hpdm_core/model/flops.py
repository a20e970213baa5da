"""Arithmetic of the network, counted from its layers' shapes (Sec. 4.3: what a level costs).

Matrix products alone, a multiply-add being 2, as torch's FLOP counter has it; a test holds the two
equal. Works on the meta device and takes no forward pass, which for billions of weights is slow.

Symbols: `n` data tokens, `m` latents, `k` conditioning tokens of one patch.
"""

from torch import nn

from hpdm_core.model.adaptive_computation import first_block
from hpdm_core.model.hpdm import HPDM
from hpdm_core.model.layers import CrossAttention, FeedForward, SelfAttention
from hpdm_core.model.rin import RINBlock


def level_flops(network: HPDM, level: int, *, text_tokens: int) -> int:
    """Return the operations of one forward pass of one patch of `level`, its context included.

    Args:
        network: on any device.
        level: level of the patch.
        text_tokens: tokens of a prompt, for networks that read texts.
    """
    size = network.size
    t, h, w = size.grid
    n, m = t * h * w, size.num_latents
    k, total = _conditioning_flops(network, text_tokens)
    total += _linear(network.tokenizer.project, n) + _linear(network.detokenizer.project, n)
    if network.self_conditioning is not None:
        total += _feed_forward(network.self_conditioning.mlp, m)
    for index in range(first_block(size.levels_per_block, level), len(network.blocks)):
        total += block_flops(network.blocks[index], n=n, m=m, k=k)
        if level > 0 and not network.shallow:
            resampling = 2 * n * size.block.data_width * (t + h + w)
            total += level * resampling + _linear(network.fusion[str(index)].project, n)
    if level > 0 and network.shallow:
        pt, ph, pw = size.patch
        total += 2 * 3 * pt * ph * pw * (pt + ph + pw)
        total += _linear(network.tokenizer.project_context, n)
    return total


def block_flops(block: RINBlock, *, n: int, m: int, k: int) -> int:
    """Return the operations of one pass of a block on one patch."""
    latent_layers = sum(
        _self_attention(attention, m) + _feed_forward(mlp, m) for attention, mlp in block.compute
    )
    return (
        _cross_attention(block.read_condition, m, k)
        + _feed_forward(block.read_condition_mlp, m)
        + _cross_attention(block.read_data, m, n)
        + _feed_forward(block.read_data_mlp, m)
        + latent_layers
        + _cross_attention(block.write, n, m)
        + _feed_forward(block.write_mlp, n)
    )


def _conditioning_flops(network: HPDM, text_tokens: int) -> tuple[int, int]:
    """Return the number of conditioning tokens, and the operations that make them."""
    tokens = network.conditioning
    total = _linear(tokens.noise.up, 1) + _linear(tokens.noise.down, 1)
    if tokens.project is None:
        return 1, total
    given = text_tokens if tokens.classes is None else 1
    return 1 + given, total + _linear(tokens.project, given)


def _linear(layer: nn.Linear, rows: int) -> int:
    return 2 * rows * layer.weight.numel()


def _feed_forward(layer: FeedForward, rows: int) -> int:
    return _linear(layer.up, rows) + _linear(layer.down, rows)


def _self_attention(layer: SelfAttention, rows: int) -> int:
    products = 2 * 2 * rows * rows * layer.to_out.in_features  # scores, then values
    return _linear(layer.to_qkv, rows) + products + _linear(layer.to_out, rows)


def _cross_attention(layer: CrossAttention, rows: int, source_rows: int) -> int:
    products = 2 * 2 * rows * source_rows * layer.to_out.in_features
    return (
        _linear(layer.to_q, rows)
        + _linear(layer.to_kv, source_rows)
        + products
        + _linear(layer.to_out, rows)
    )
