"""Damage of known strength does what it says, and nothing at strength zero."""

import degrade
import pytest
import torch


@pytest.fixture
def video() -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(60, 190, (8, 21, 30, 3), generator=rng, dtype=torch.uint8)


def test_noise_has_the_strength_asked_for(video):
    noisy = degrade.add_noise(video, 10, torch.Generator().manual_seed(1))
    assert float((noisy.float() - video.float()).std()) == pytest.approx(10, rel=0.03)
    assert torch.equal(degrade.add_noise(video, 0, torch.Generator()), video)


def test_blur_keeps_the_mean_and_removes_contrast(video):
    blurred = degrade.blur(video, 1.5)
    assert float(blurred.float().mean()) == pytest.approx(float(video.float().mean()), rel=0.01)
    assert blurred.float().std() < 0.4 * video.float().std()
    flat = torch.full_like(video, 100)
    assert torch.equal(degrade.blur(flat, 2.0), flat)


def test_a_single_point_blurs_to_a_gaussian():
    point = torch.zeros(1, 31, 31, 3, dtype=torch.uint8)
    point[0, 15, 15] = 255
    blurred = degrade.blur(point, 1.0)[0, :, :, 0]
    assert int(blurred[15, 15]) == pytest.approx(255 / (2 * torch.pi), abs=1)
    assert int(blurred[15, 17]) == pytest.approx(255 / (2 * torch.pi) * 0.1353, abs=1)


def test_shuffling_permutes_a_share_of_the_frames(video):
    shuffled = degrade.shuffle_frames(video, 0.5, torch.Generator().manual_seed(3))
    moved = (shuffled != video).flatten(1).any(dim=1)
    assert 1 <= int(moved.sum()) <= 4
    key = lambda v: sorted(int(frame.sum()) for frame in v)  # noqa: E731
    assert key(shuffled) == key(video)
    assert torch.equal(degrade.shuffle_frames(video, 0, torch.Generator()), video)


def test_freezing_repeats_the_last_moving_frame(video):
    frozen = degrade.freeze_frames(video, 0.5)
    assert torch.equal(frozen[:4], video[:4])
    assert all(torch.equal(frame, video[3]) for frame in frozen[4:])
    assert torch.equal(degrade.freeze_frames(video, 0), video)
    assert all(torch.equal(frame, video[0]) for frame in degrade.freeze_frames(video, 1))


def test_compression_loses_more_at_a_higher_rate_factor_and_keeps_odd_sizes(video):
    smooth = degrade.blur(video, 2.0)
    errors = []
    for crf in (10, 40):
        decoded = degrade.compress_h264(smooth, crf)
        assert decoded.shape == smooth.shape
        errors.append(float((decoded.float() - smooth.float()).abs().mean()))
    assert errors[0] < errors[1]


def test_block_noise_is_constant_in_blocks_and_has_its_strength(video):
    grey = torch.full((8, 40, 40, 3), 128, dtype=torch.uint8)
    noisy = degrade.add_block_noise(grey, 10, torch.Generator().manual_seed(1), block=4).float()
    assert torch.equal(noisy, noisy[:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2))
    assert float(noisy.std()) == pytest.approx(10, rel=0.06)
    odd = degrade.add_block_noise(video, 3, torch.Generator().manual_seed(1), block=4)
    assert odd.shape == video.shape


def test_seams_are_steps_at_tile_borders_only(video):
    grey = torch.full((8, 40, 40, 3), 128, dtype=torch.uint8)
    rng = torch.Generator().manual_seed(1)
    stepped = degrade.add_seams(grey, 10, rng, tile=(4, 10, 20)).float()
    rows = stepped.diff(dim=1).abs().sum(dim=(0, 2, 3)).nonzero().flatten() + 1
    columns = stepped.diff(dim=2).abs().sum(dim=(0, 1, 3)).nonzero().flatten() + 1
    frames = stepped.diff(dim=0).abs().sum(dim=(1, 2, 3)).nonzero().flatten() + 1
    assert (frames.tolist(), rows.tolist(), columns.tolist()) == ([4], [10, 20, 30], [20])
    assert degrade.add_seams(video, 3, rng, tile=(3, 10, 11)).shape == video.shape


def test_a_colour_shift_moves_red_up_and_blue_down(video):
    shifted = degrade.shift_colour(video, 20).float() - video.float()
    assert shifted.mean(dim=(0, 1, 2)).tolist() == [20, 0, -20]
