"""Patches are cut out of the right video at the right place."""

import torch

from hpdm_core.inference.context import gather_patches
from tests.paper.tiny import make_pyramid


def test_patches_are_slices_of_their_videos():
    pyramid = make_pyramid(3)
    video = torch.randn(3, 2, *pyramid.resolution)
    sample = torch.tensor([2, 0, 0, 1])
    offsets = torch.tensor([[6, 12, 12], [0, 0, 0], [1, 2, 3], [3, 0, 5]])
    patches = gather_patches(pyramid, video, sample, offsets)
    assert patches.shape == (4, 2, *pyramid.patch)
    for patch, s, (t, h, w) in zip(patches, sample, offsets.tolist(), strict=True):
        assert torch.equal(patch, video[s, :, t : t + 2, h : h + 4, w : w + 4])
