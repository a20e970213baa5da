"""The store of activations keeps what fits, where it fits, and counts it right."""

import torch

from hpdm_core.inference.activation_cache import ActivationCache


def make_cache(device_budget: int, host_budget: int) -> ActivationCache:
    return ActivationCache(
        device=torch.device("cpu"), device_budget=device_budget, host_budget=host_budget
    )


def entry(numbers: int) -> tuple[torch.Tensor, ...]:
    """Return two float32 tensors of `numbers` values in all."""
    values = torch.arange(numbers, dtype=torch.float32)
    return values[: numbers // 2, None], values[numbers // 2 :, None]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_entries_go_to_the_device_then_to_memory_then_nowhere():
    cache = make_cache(40, 80)
    assert cache.put("a", entry(10))
    assert cache.put("b", entry(10))
    assert cache.nbytes == (40, 40)
    assert cache.fits(entry(10))
    assert not cache.fits(entry(12))
    assert not cache.put("c", entry(12))
    assert not cache.has("c")
    assert cache.get("c") is None
    assert same(cache.get("a"), entry(10))
    assert same(cache.get("b"), entry(10))


def test_rows_are_picked_in_any_order_with_repeats():
    for budgets in ((1000, 0), (0, 1000)):
        cache = make_cache(*budgets)
        cache.put("a", entry(8))
        rows = torch.tensor([3, 0, 0])
        assert cache.get("a", rows)[1].flatten().tolist() == [7, 4, 4]


def test_dropping_makes_room():
    cache = make_cache(40, 0)
    cache.put("a", entry(10))
    assert not cache.put("b", entry(10))
    cache.drop("a")
    cache.drop("never there")
    assert cache.nbytes == (0, 0)
    assert cache.put("b", entry(10))
    cache.clear()
    assert cache.nbytes == (0, 0)
    assert not cache.has("b")


def test_a_budget_asked_about_before_anything_is_computed():
    cache = make_cache(40, 0)
    assert cache.fits((torch.empty(10, device="meta"),))
    assert not cache.fits((torch.empty(11, device="meta"),))
