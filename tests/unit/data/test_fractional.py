"""Training patches at fractions of a pixel against SciPy's interpolation of whole levels."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from hpdm_core.build import build_loader
from hpdm_core.data.dataset import VideoDataset
from hpdm_core.data.fractional import draw_fractional_offsets
from hpdm_core.data.loader import PatchLoader
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.recipe.load import load_recipe
from tests.unit.data.test_loader import EXACT, take, whole_clips

LEVELS = "[[4,12,12],[8,24,24],[16,48,48]]"
SIZES = ["pyramid.patch=[4,12,12]", f"pyramid.levels={LEVELS}", "train.batch_size=4"]


def make_loader(dataset: VideoDataset, *overrides: str) -> PatchLoader:
    recipe = load_recipe("ablation_smoke", [*SIZES, *overrides])
    return build_loader(recipe, dataset, batch_size=4, workers=0)


def whole_level(clip: np.ndarray, pyramid: Pyramid, level: int) -> np.ndarray:
    """Return a level's whole video (c, t, h, w) of a clip at the finest resolution."""
    t, h, w = pyramid.stride(level)
    colours, frames, rows, columns = clip[:, ::t].shape
    blocks = clip[:, ::t].reshape(colours, frames, rows // h, h, columns // w, w)
    return blocks.mean(axis=(3, 5))


def interpolated(video: np.ndarray, offset: np.ndarray, patch: tuple) -> np.ndarray:
    places = np.meshgrid(
        *(start + np.arange(size) for start, size in zip(offset, patch, strict=True)),
        indexing="ij",
    )
    return np.stack([map_coordinates(colour, places, order=1) for colour in video])


@pytest.mark.parametrize("flip", ["data.flip=false", "data.flip=true"])
def test_patches_are_trilinear_samples_of_their_level(dataset, flip):
    for batch in take(make_loader(dataset, "pyramid.offsets=fractional", flip), 0, 2):
        assert batch.offsets.dtype == torch.float32
        for sample, key in enumerate(batch.keys):
            clips = whole_clips(dataset, key, frames=16)[..., 8:56].numpy()
            both = [*clips, *(clip[..., ::-1] for clip in clips)]
            errors = []
            for clip in both:
                worst = 0.0
                for level, patch in enumerate(batch.patches):
                    video = whole_level(clip, EXACT, level)
                    offset = batch.offsets[sample, level].numpy()
                    expected = interpolated(video, offset, EXACT.patch)
                    grey = (patch[sample].numpy() + 1) * 127.5
                    worst = max(worst, np.abs(grey - expected).max())
                errors.append(worst)
            assert min(errors) < 2e-2


def test_offsets_are_fractional_nested_and_uniform():
    rng = np.random.default_rng(0)
    drawn = np.stack([draw_fractional_offsets(EXACT, rng) for _ in range(2000)])
    assert not drawn[:, 0].any()
    first, second = drawn[:, 1] / (4, 12, 12), (drawn[:, 2] - 2 * drawn[:, 1]) / (4, 12, 12)
    for place in (first, second):  # where in the room that the parent leaves
        assert place.min() >= 0
        assert place.max() <= 1
        assert np.allclose(np.quantile(place, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.05)
    assert (drawn[:, 1] % 1 > 0).all()


def test_the_same_clips_are_drawn_and_a_batch_depends_on_the_step_alone(dataset):
    whole = take(make_loader(dataset), 1, 1)[0]
    loader = make_loader(dataset, "pyramid.offsets=fractional")
    one, again = take(loader, 1, 1)[0], take(loader, 0, 2)[1]
    assert one.keys == whole.keys
    assert torch.equal(one.condition.labels, whole.condition.labels)
    assert torch.equal(one.patches[0], whole.patches[0])  # level 0 is the whole video
    assert not torch.equal(one.patches[2], whole.patches[2])
    assert torch.equal(one.patches[2], again.patches[2])
    assert torch.equal(one.offsets, again.offsets)
