"""Batches of one's own tensors: what is left out has a default."""

import torch

from hpdm_core.records import Condition, PatchBatch
from hpdm_core.training.batches import split_batch
from tests.paper.tiny import make_batch, make_pyramid

PATCHES, OFFSETS = (torch.zeros(3, 3, 2, 4, 4),), torch.zeros(3, 1, 3, dtype=torch.int64)


def test_a_batch_needs_patches_and_offsets_only():
    batch = PatchBatch(patches=PATCHES, offsets=OFFSETS)
    assert batch.condition == Condition()
    assert batch.indices.tolist() == [0, 1, 2]
    assert batch.keys == ("0", "1", "2")
    assert batch.to(torch.device("cpu")).indices.tolist() == [0, 1, 2]


def test_keys_follow_indices_and_what_is_given_is_kept():
    batch = PatchBatch(patches=PATCHES, offsets=OFFSETS, indices=torch.tensor([4, 5, 6]))
    assert batch.keys == ("4", "5", "6")
    batch = PatchBatch(patches=PATCHES, offsets=OFFSETS, keys=("a", "b", "c"))
    assert batch.keys == ("a", "b", "c")
    assert batch.indices.tolist() == [0, 1, 2]


def test_parts_of_a_batch_keep_their_places():
    """Defaults are those of the whole batch, so that noise does not depend on the split."""
    whole = make_batch(make_pyramid(2), 3)
    batch = PatchBatch(patches=whole.patches, offsets=whole.offsets, condition=whole.condition)
    parts = split_batch(batch, 2)
    assert [part.indices.tolist() for part in parts] == [[0, 1], [2]]
    assert [part.keys for part in parts] == [("0", "1"), ("2",)]
