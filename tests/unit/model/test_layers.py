"""Layers against plain arithmetic: attention, feed-forward, tokens, positions, conditioning."""

import math

import pytest
import torch
import torch.nn.functional as F

from hpdm_core.errors import DataError
from hpdm_core.model import layers
from hpdm_core.model.conditioning import ConditioningTokens, NoiseEmbedding
from hpdm_core.model.layers import CrossAttention, FeedForward, SelfAttention
from hpdm_core.model.rin import RINBlock
from hpdm_core.model.tokenizer import Detokenizer, Positions, Tokenizer
from hpdm_core.model.transformer import TransformerLayer
from hpdm_core.records import Condition
from tests.paper.tiny import make_network


def attend(q, k, v, heads, mask=None):
    """Softmax attention with loops over samples and heads; (b, n, h d) in and out."""
    width = q.shape[-1] // heads
    out = torch.zeros_like(q)
    for sample in range(len(q)):
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = q[sample, :, part] @ k[sample, :, part].T / math.sqrt(width)
            if mask is not None:
                scores = scores.masked_fill(~mask[sample], -math.inf)
            out[sample, :, part] = scores.softmax(-1) @ v[sample, :, part]
    return out


def test_self_attention_is_pre_norm_biased_and_residual():
    layer, x = SelfAttention(10, heads=3, head_width=4), torch.randn(2, 5, 10)
    q, k, v = layer.to_qkv(F.layer_norm(x, (10,))).chunk(3, dim=-1)
    expected = x + layer.to_out(attend(q, k, v, 3))
    assert torch.allclose(layer(x), expected, atol=1e-5)
    assert layer.to_qkv.bias is not None
    assert layer.to_out.bias is not None
    assert layer.to_out.in_features == 12  # heads * head width, not the tokens' width


@pytest.mark.parametrize("masked", [True, False])
def test_cross_attention_normalises_both_sides_and_heeds_its_mask(masked):
    layer = CrossAttention(6, 10, heads=2, head_width=4)
    x, source = torch.randn(2, 3, 6), 5 * torch.randn(2, 7, 10)
    mask = torch.arange(7) < torch.tensor([[7], [3]]) if masked else None
    q = layer.to_q(F.layer_norm(x, (6,)))
    k, v = layer.to_kv(F.layer_norm(source, (10,))).chunk(2, dim=-1)
    expected = x + layer.to_out(attend(q, k, v, 2, mask))
    assert torch.allclose(layer(x, source, mask), expected, atol=1e-5)
    changed = source.clone()
    changed[1, 3:] *= -1
    assert torch.allclose(layer(x, changed, mask), layer(x, source, mask)) is masked


def test_feed_forward_is_two_layers_around_a_gelu():
    x = torch.randn(2, 5, 6)
    layer = FeedForward(6, ratio=3)
    inner = layer.down(F.gelu(layer.up(F.layer_norm(x, (6,)))))
    assert layer.up.out_features == 18
    assert torch.allclose(layer(x), x + inner, atol=1e-6)


def test_dropout_acts_in_training_alone():
    layer, x = FeedForward(6, ratio=3, dropout=0.5), torch.randn(2, 5, 6)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_a_block_reads_computes_and_writes_in_that_order():
    """SnapVideo's FIT block: condition first, then data, four layers, then back to the data."""
    block, ran = make_network(1).blocks[0], []
    for name, module in block.named_modules():
        if isinstance(module, CrossAttention | SelfAttention | FeedForward):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    block(torch.randn(1, 6, 16), torch.randn(1, 8, 16), torch.randn(1, 2, 16), None)
    assert ran == [
        "read_condition", "read_condition_mlp", "read_data", "read_data_mlp",
        "compute.0.0", "compute.0.1", "write", "write_mlp",
    ]  # fmt: skip
    assert isinstance(block, RINBlock)


def test_a_transformer_layer_is_modulated_by_its_condition():
    """adaLN-Zero (DiT): x + gate * f(norm(x) * (1 + scale) + shift), twice."""
    layer = TransformerLayer(8, heads=2, head_width=4, ratio=3, dropout=0.0)
    x, condition = torch.randn(2, 5, 8), torch.randn(2, 8)
    shift, scale, gate, shift_2, scale_2, gate_2 = layer.modulation(condition)[:, None].chunk(6, -1)
    q, k, v = layer.attention.to_qkv(F.layer_norm(x, (8,)) * (1 + scale) + shift).chunk(3, dim=-1)
    y = x + gate * layer.attention.to_out(attend(q, k, v, 2))
    hidden = layer.mlp.up(F.layer_norm(y, (8,)) * (1 + scale_2) + shift_2)
    expected = y + gate_2 * layer.mlp.down(F.gelu(hidden))
    assert torch.allclose(layer(x, condition), expected, atol=1e-5)
    assert not [name for name, _ in layer.named_parameters() if "norm" in name]


def test_a_transformer_block_sums_noise_and_class_and_reads_a_text():
    by_class = make_network(1, block="transformer").blocks[0]
    tokens, none = torch.randn(1, 8, 16), torch.empty(1, 0, 0)
    condition = torch.randn(1, 2, 16)
    assert by_class.read_text is None
    _, a = by_class(none, tokens, condition, None)
    _, b = by_class(none, tokens, condition.sum(1, keepdim=True), None)
    assert torch.allclose(a, b, atol=1e-5)
    by_text = make_network(1, block="transformer", conditioning="text").blocks[0]
    condition, mask = torch.randn(1, 4, 16), torch.tensor([[True, True, False, False]])
    _, masked = by_text(none, tokens, condition, mask)
    _, short = by_text(none, tokens, condition[:, :2], None)
    assert torch.allclose(masked, short, atol=1e-5)
    read = by_text.read_text(tokens, condition[:, :2])
    for layer in by_text.layers:
        read = layer(read, F.silu(condition[:, 0]))
    assert torch.allclose(short, read, atol=1e-5)


def test_a_token_is_a_block_of_pixels_flattened():
    tokenizer = Tokenizer(
        (1, 2, 3), (2, 2, 2), 8, positions="learned", shallow_context=False, coordinates=True
    )
    video = torch.randn(1, 3, 2, 4, 6)
    pixels = tokenizer.patchify(video)
    assert pixels.shape == (1, 8, 18)
    token = 5  # frame 1, row 0, column 1: the width runs fastest
    expected = video[0, :, 1:2, 0:2, 3:6].movedim(0, -1).flatten()
    assert torch.equal(pixels[0, token], expected)


def test_detokenizing_puts_pixels_back_where_they_came_from():
    tokenizer = Tokenizer(
        (2, 2, 3), (2, 3, 2), 36, positions="learned", shallow_context=False, coordinates=True
    )
    detokenizer = Detokenizer((2, 2, 3), (2, 3, 2), 36)
    with torch.no_grad():
        detokenizer.project.weight.copy_(torch.eye(36))
        detokenizer.project.bias.zero_()
    video = torch.randn(2, 3, 4, 6, 6)
    detokenizer.norm = torch.nn.Identity()
    assert torch.equal(detokenizer(tokenizer.patchify(video)), video)


def test_positions_are_a_table_or_a_sum_of_three():
    grid = (2, 3, 4)
    whole, parts = (Positions(grid, 5, kind=kind) for kind in ("learned", "factorised"))
    assert [tuple(t.shape) for t in whole.tables] == [(24, 5)]
    assert [tuple(t.shape) for t in parts.tables] == [(2, 5), (3, 5), (4, 5)]
    for table in parts.tables:
        torch.nn.init.normal_(table)
    t, h, w = parts.tables
    assert torch.allclose(parts()[(1 * 3 + 2) * 4 + 3], t[1] + h[2] + w[3])


def test_positions_start_as_sinusoids_that_tell_each_token_and_its_distance():
    grid = (4, 8, 8)
    whole, parts = (Positions(grid, 48, kind=kind) for kind in ("learned", "factorised"))
    (table,), axes = whole.initial(), parts.initial()
    assert torch.allclose(table.square().mean(1), torch.ones(256), atol=1e-5)
    summed = axes[0][:, None, None] + axes[1][:, None] + axes[2]
    assert torch.equal(table, summed.flatten(0, 2))
    distances = torch.cdist(table, table)
    assert distances[~torch.eye(256, dtype=bool)].min() > 1
    for axis in range(3):  # the farther along an axis, the less alike
        likeness = (axes[axis] @ axes[axis][0]).tolist()
        assert likeness[:3] == sorted(likeness[:3], reverse=True)
        assert max(likeness[3:]) < likeness[1]


@pytest.mark.parametrize("width", [4, 5, 7, 16, 33])
def test_sinusoids_fit_any_width(width):
    tables = Positions((1, 2, 3), width, kind="factorised").initial()
    assert [tuple(table.shape) for table in tables] == [(1, width), (2, width), (3, width)]


def test_noise_levels_near_and_far_are_told_apart():
    """Neighbouring steps of a long schedule, and both ends of it."""
    embedding = NoiseEmbedding(64)
    sigmas = torch.tensor([0.002, 0.0022, 1.0, 1.05, 70.0, 80.0])
    tokens = embedding(sigmas.log() / 4)
    assert torch.cdist(tokens, tokens)[~torch.eye(6, dtype=bool)].min() > 1e-2


def test_conditioning_tokens_of_classes_texts_and_nothing():
    labels = torch.randn(3)
    by_class = ConditioningTokens(8, num_classes=4, condition_width=5)
    tokens, mask = by_class(labels, Condition(labels=torch.tensor([0, 3, -1])))
    assert tokens.shape == (3, 2, 8)
    assert mask is None
    none = by_class.project(by_class.classes.weight[4])  # the table's last entry
    assert torch.allclose(tokens[2, 1], none)
    assert not torch.allclose(tokens[1, 1], none)
    by_text = ConditioningTokens(8, num_classes=None, condition_width=5)
    given = torch.arange(4) < torch.tensor([[4], [2], [0]])
    tokens, mask = by_text(labels, Condition(text=torch.randn(3, 4, 5), text_mask=given))
    assert tokens.shape == (3, 5, 8)
    assert mask.tolist() == [[True, *row] for row in given.tolist()]  # the noise level counts
    alone = ConditioningTokens(8, num_classes=None, condition_width=None)
    tokens, mask = alone(labels, Condition())
    assert tokens.shape == (3, 1, 8)
    assert mask is None


def test_a_condition_without_what_the_network_takes_is_refused():
    by_class = ConditioningTokens(8, num_classes=4, condition_width=5)
    with pytest.raises(DataError, match=r"takes classes but .* no labels; give Condition\(labels"):
        by_class(torch.zeros(2), Condition())
    by_text = ConditioningTokens(8, num_classes=None, condition_width=5)
    for condition in (Condition(), Condition(text=torch.zeros(2, 3, 5))):
        with pytest.raises(DataError, match=r"takes text but .* lacks text or text_mask; give"):
            by_text(torch.zeros(2), condition)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("stored", [layers.MAX_STORED_SCORES, 0])
def test_attention_in_bfloat16_equals_the_definition(monkeypatch, masked, stored):
    monkeypatch.setattr(layers, "MAX_STORED_SCORES", stored)
    draw = torch.Generator().manual_seed(0)
    sizes = ((2, 3, 7, 16), (2, 3, 11, 16), (2, 3, 11, 16))
    q, k, v = (torch.randn(s, generator=draw).bfloat16().requires_grad_() for s in sizes)
    allowed = torch.rand(2, 1, 1, 11, generator=draw) < 0.6 if masked else None
    y = layers.attention(q, k, v, allowed)
    # The definition in float64: a mean of the values, weighted by the exponentials of products.
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    weights = torch.einsum("bhnd,bhmd->bhnm", *wide[:2]).div(4).exp()
    weights = weights if allowed is None else weights * allowed
    expected = torch.einsum("bhnm,bhmd->bhnd", weights / weights.sum(-1, keepdim=True), wide[2])
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected, atol=0.02, rtol=0.02)
    pull = torch.randn(y.shape, generator=draw)
    y.backward(pull.bfloat16())
    expected.backward(pull.double())
    for narrow, reference in zip((q, k, v), wide, strict=True):
        torch.testing.assert_close(narrow.grad.double(), reference.grad, atol=0.04, rtol=0.04)
