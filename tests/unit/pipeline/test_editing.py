"""Given videos: upscaled, edited, inpainted and extended, by invariants that any model keeps."""

from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from hpdm_core.data.video_io import write_mp4
from hpdm_core.errors import HpdmError
from hpdm_core.geometry.patches import extract_patches
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.inference.given import lower_levels, next_window, num_windows
from hpdm_core.pipeline.editing import Edit
from hpdm_core.pipeline.inputs import Source, as_source, read_mask
from hpdm_core.pipeline.plan import memory_estimate
from hpdm_core.pipeline.resources import Resources
from hpdm_core.progress import NoProgress

ASKED = {"overlap": "fhw", "seeds": [3], "progress": NoProgress()}


@pytest.fixture
def video():
    """(4, 16, 16, 3) uint8, the tiny model's size."""
    return np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


def test_strength_0_keeps_the_video_and_1_ignores_it(pipe, video):
    kept = pipe.edit(video, strength=0, **ASKED)
    assert np.array_equal(kept.frames[0], video)
    plain = pipe(classes="circle", **ASKED)
    assert np.array_equal(pipe.edit(video, strength=1, classes="circle", **ASKED).frames,
                          plain.frames)  # fmt: skip


def test_strength_by_level_starts_from_the_level_asked_for(pipe, video):
    both = {"steps": (4, 4), **ASKED}
    blocks = video[::2, ::2, ::2].repeat(2, 0).repeat(2, 1).repeat(2, 2)
    texture = pipe.edit(blocks, strength=(0, 1), **both).frames
    # The layout is the video's: the finest level is sampled from it as in upscaling.
    upscaled = pipe.upscale(video[::2, ::2, ::2], consistent=False, **both).frames
    assert np.array_equal(texture, upscaled)
    layout = pipe.edit(video, strength=(1, 0), **both).frames
    assert np.array_equal(layout[0], video)
    assert not np.array_equal(pipe.edit(video, strength=(1, 0.5), **both).frames, layout)


def test_what_upscaling_starts_from_is_the_level_itself(pipe, video):
    """A video of the level's size is taken frame by frame, pixel by pixel."""
    small = video[:2, :8, :8]
    given = Edit(source=as_source(small), upscale=True)
    taken = given.given(pipe.pyramid, fps=8.0)
    assert np.array_equal(np.round((taken.videos[0][0].numpy() + 1) * 127.5),
                          np.moveaxis(small, -1, 0))  # fmt: skip
    settings = given.settings(pipe.settings, pipe.pyramid)
    assert [len(s.evaluated_sigmas()) for s in settings.solvers] == [0, 2]
    assert pipe.upscale(small, **ASKED).frames.shape == (1, 4, 16, 16, 3)


def test_an_upscaled_video_brought_down_again_is_the_input(pipe, video):
    small = video[:2, :8, :8] // 8 + 112  # grey: this untrained model leaves bytes otherwise
    settings = Edit(source=as_source(small), upscale=True).settings(pipe.settings, pipe.pyramid)
    condition = pipe.condition_of([0])
    for consistent in (True, False):
        given = Edit(source=as_source(small), upscale=True, consistent=consistent)
        taken = given.given(pipe.pyramid, fps=8.0)
        made = pipe.sample([0], condition, settings=settings, given=taken)
        down = lower_levels(pipe.pyramid, made, 1)[0]
        assert ((down - taken.videos[0]).abs().max() < 1e-5) == consistent


def test_noise_of_the_context_changes_the_result(pipe, video):
    first = pipe.upscale(video, context_noise=0.01, **ASKED)
    second = pipe.upscale(video, context_noise=0.5, **ASKED)
    assert not np.array_equal(first.frames, second.frames)


def test_levels_are_brought_down_as_in_training(pipe, video):
    levels = Edit(source=as_source(video), strength=(0.5,)).given(pipe.pyramid, fps=8.0).videos
    whole = torch.from_numpy(video).movedim(-1, 0)[None].double() / 127.5 - 1
    patches = extract_patches(whole, pipe.pyramid, torch.zeros(1, 2, 3, dtype=torch.int64))
    assert torch.allclose(levels[0].double(), patches[0], atol=1e-6)


@pytest.mark.parametrize(
    ("mask", "solver", "repeats"),
    [((4, 4, 8, 8), "heun", 1), ("0,0,8,16", "dpmpp_2m", 1), ((4, 4, 8, 8), "dpmpp_3m", 2)],
)
def test_pixels_outside_a_mask_are_the_input(pipe, video, mask, solver, repeats):
    recipe = pipe.recipe.with_fields("sampling", {"solver": (solver,), "steps": (3, 3)})
    made = replace(pipe, recipe=recipe).inpaint(video, mask, repeats=repeats, **ASKED).frames[0]
    masked = read_mask(mask, as_source(video))[0]
    assert np.array_equal(made[:, ~masked], video[:, ~masked])
    assert not np.array_equal(made[:, masked], video[:, masked])


def test_repeats_add_noise_between_steps(pipe, video):
    asked = {"steps": (3, 3), **ASKED}
    once = pipe.inpaint(video, (4, 4, 8, 8), **asked)
    given = Edit(source=as_source(video), mask=np.eye(16, dtype=bool)[None], repeats=(3, 1))
    solvers = given.settings(pipe.settings, pipe.pyramid).solvers
    assert [len(s.evaluated_sigmas()) for s in solvers] == [1 * 3 + 1, 2]
    assert not np.array_equal(
        once.frames, pipe.inpaint(video, (4, 4, 8, 8), repeats=2, **asked).frames
    )


def test_a_mask_that_moves(pipe, video):
    masked = np.zeros((4, 16, 16), bool)
    for k in range(4):
        masked[k, :, 4 * k : 4 * k + 4] = True
    made = pipe.inpaint(video, masked, **ASKED).frames[0]
    assert np.array_equal(made[~masked], video[~masked])


def test_a_coarse_pixel_is_known_only_if_all_of_it_is(pipe, video):
    masked = np.zeros((16, 16), bool)
    masked[5, 5] = True
    given = Edit(source=as_source(video), mask=read_mask(masked, as_source(video)))
    coarse, fine = given.given(pipe.pyramid, fps=8.0).generated
    assert coarse[0, 0].nonzero().tolist() == [[0, 2, 2], [1, 2, 2]]
    assert fine.sum() == 4


def test_first_frames_are_held_and_windows_follow(pipe, video):
    made = pipe.extend(video, frames=7, **ASKED).frames[0]
    assert made.shape == (11, 16, 16, 3)
    assert np.array_equal(made[:4], video)
    assert len({frame.tobytes() for frame in made}) == 11
    first = pipe.extend(video, first_frames=1, **ASKED).frames[0]
    assert first.shape == (4, 16, 16, 3)
    assert np.array_equal(first[0], video[0])


def test_windows_begin_within_a_tile_and_end_with_level_0s_last_frame():
    """So that tiles and frames see others on both sides of what is generated."""
    sizes = ((4, 8, 8), (8, 16, 16), (16, 32, 32))
    pyramid = Pyramid(patch=(4, 8, 8), levels=sizes)
    assert next_window(pyramid, have=16, frames=64) == (10, 3)
    assert [-(-10 // pyramid.stride(level)[0]) % 4 for level in range(3)] == [3, 1, 2]
    last = (pyramid.patch[0] - 1) * pyramid.stride(0)[0]
    assert last + 1 == 10 + 3
    assert next_window(pyramid, have=3, frames=64) == (3, 10)  # no more than there are
    assert next_window(pyramid, have=16, frames=18) == (11, 2)  # the last window fills itself
    assert next_window(pyramid, have=5, frames=16) == (5, 11)  # one window makes the whole
    assert num_windows(pyramid, have=16, frames=64) == 16
    average = replace(pyramid, temporal_downsampling="average")
    assert next_window(average, have=16, frames=64) == (10, 6)
    one_tile = Pyramid(patch=(4, 8, 8), levels=sizes[:1])
    assert next_window(one_tile, have=16, frames=64) == (2, 2)
    shortest = Pyramid(patch=(2, 8, 8), levels=((2, 8, 8), (16, 16, 16)))
    assert next_window(shortest, have=16, frames=64) == (7, 2)


def test_a_window_is_an_inpainted_video(pipe, video):
    """What follows is generated from the frames held alone: later input does not matter."""
    other = video.copy()
    other[1:] = 0
    a, b = (pipe.extend(v, first_frames=1, **ASKED).frames for v in (video, other))
    assert np.array_equal(a, b)


def test_results_depend_on_neither_batches_nor_cache(pipe, video):
    asked = {"guidance": 2.0, "classes": "star", "seeds": [0, 1], "progress": NoProgress()}
    for call in (
        lambda r: pipe.upscale(video, resources=r, **asked),
        lambda r: pipe.edit(video, strength=0.5, resources=r, **asked),
        lambda r: pipe.inpaint(video, (0, 0, 8, 8), resources=r, **asked),
        lambda r: pipe.extend(video, frames=3, resources=r, **asked),
    ):
        one = call(Resources(batch=1, tile_batch=1, cache="off")).frames.astype(int)
        many = call(Resources(batch=2, tile_batch=64)).frames
        assert np.abs(one - many).max() <= 1


def test_frames_are_picked_by_their_times(tmp_path):
    path = tmp_path / "ramp.mp4"
    ramp = np.arange(24, dtype=np.uint8)[:, None, None, None] * 10 + np.zeros((1, 16, 16, 3))
    write_mp4(path, ramp.astype(np.uint8), 24.0)
    source = Source(path=path)
    _, places = source.on_grid((8, 8), rate=8.0, most=4, least=4)
    assert places == [0, 3, 6, 9]
    _, places = source.on_grid((8, 8), rate=8.0, most=24, least=24)
    assert places == list(range(24))  # as many as the grid has: one by one
    _, places = source.on_grid((8, 8), rate=8.0, most=None, least=1)
    assert places == list(range(0, 24, 3))
    with pytest.raises(HpdmError, match="too short; got 8 frames at 8 fps, 24 frames at 24 fps"):
        source.on_grid((8, 8), rate=8.0, most=9, least=9)


def test_the_centre_is_taken(pipe):
    wide = np.zeros((4, 16, 32, 3), np.uint8)
    wide[:, :, 8:24] = 255
    assert pipe.edit(wide, strength=0, **ASKED).frames.min() == 255


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, v, d: p.edit(d / "none.mp4", strength=0.5), "none.mp4: .*cannot be read"),
        (lambda p, v, d: p.edit(d, strength=0.5), "it is a folder, not a file"),
        (lambda p, v, d: p.edit(write_sound(d / "a.m4a"), strength=0.5), "sound only"),
        (lambda p, v, d: p.edit(v[:2], strength=0.5), "too short; got 2 frames"),
        (lambda p, v, d: p.edit(v[:1], strength=0.5), "too short; got 1 frame at"),
        (lambda p, v, d: p.edit(v / 255, strength=0.5), "wrong shape or dtype"),
        (lambda p, v, d: p.edit(v, strength=1.5), "strength is out of range"),
        (lambda p, v, d: p.edit(v, strength=(0.1, 0.2, 0.3)), "wrong number of values"),
        (lambda p, v, d: p.upscale(v, level=1), "below the finest; got level 1 of 2"),
        (lambda p, v, d: p.upscale(v, context_noise=2.0), "context noise is a noise level"),
        (lambda p, v, d: p.inpaint(v, np.ones((8, 8))), "another size.*got 8x8; expected 16x16"),
        (lambda p, v, d: p.inpaint(v, np.zeros((16, 16))), "covers nothing"),
        (lambda p, v, d: p.inpaint(v, np.ones((16, 16))), "covers the whole video"),
        (lambda p, v, d: p.inpaint(v, np.ones((2, 16, 16))), "the mask is shorter"),
        (lambda p, v, d: p.inpaint(v, (20, 0, 4, 4)), "covers nothing.*got a box 20,0,4,4"),
        (lambda p, v, d: p.inpaint(v, d / "none.png"), "mask .*none.png: cannot be read"),
        (lambda p, v, d: p.inpaint(v, (0, 0, 4, 4), repeats=0), "--repeats counts; got 0"),
        (lambda p, v, d: p.extend(v, first_frames=9), "too short; got 4 frames"),
        (lambda p, v, d: p.extend(v), "nothing is left to generate"),
        (lambda p, v, d: p.extend(v, frames=0), "--extend counts; got 0"),
    ],
)
def test_wrong_input_is_refused(pipe, video, tmp_path, make, message):
    with pytest.raises(HpdmError, match=message):
        make(pipe, video, tmp_path)


def test_masks_from_files(pipe, video, tmp_path):
    white = np.zeros((16, 16), np.uint8)
    white[:8] = 255
    Image.fromarray(white).save(tmp_path / "m.png")
    write_mp4(tmp_path / "m.mp4", [np.repeat(white[..., None], 3, 2)] * 4, 8.0)
    (tmp_path / "text.png").write_text("no image")
    source = as_source(video)
    for name in ("m.png", "m.mp4"):
        masked = read_mask(str(tmp_path / name), source)
        assert np.array_equal(masked[0], white > 0)
    with pytest.raises(HpdmError, match="not an image that can be read"):
        read_mask(str(tmp_path / "text.png"), source)


def test_ways_exclude_each_other(video):
    with pytest.raises(HpdmError, match="got --upscale and --strength; expected one of"):
        Edit(source=as_source(video), upscale=True, strength=(0.5,))
    with pytest.raises(HpdmError, match="got --mask and --first-frames or --extend; expected"):
        Edit(source=as_source(video), mask=np.ones((1, 16, 16), bool), continues=True)
    with pytest.raises(HpdmError, match="got none of them"):
        Edit(source=as_source(video))
    with pytest.raises(HpdmError, match="--no-consistent belongs to --upscale"):
        Edit(source=as_source(video), strength=(0.5,), consistent=False)
    with pytest.raises(HpdmError, match="--repeats belongs to --mask"):
        Edit(source=as_source(video), strength=(0.5,), repeats=(2,))


def test_a_given_video_on_a_canvas(pipe):
    wide = np.random.default_rng(0).integers(0, 256, (4, 16, 24, 3), dtype=np.uint8)
    asked = {"size": (4, 16, 24), **ASKED}
    made = pipe.inpaint(wide, (8, 0, 8, 16), **asked).frames[0]
    assert np.array_equal(made[:, :, 16:], wide[:, :, 16:])
    assert pipe.upscale(wide[:2, :8, :12], **asked).frames.shape == (1, 4, 16, 24, 3)
    assert pipe.extend(wide, frames=2, **asked).frames.shape == (1, 6, 16, 24, 3)
    assert np.array_equal(pipe(size=(4, 16, 16), **ASKED).frames, pipe(**ASKED).frames)
    with pytest.raises(HpdmError, match="size is frames, height, width; got 2 numbers"):
        pipe(size=(4, 16), **ASKED)


def test_beyond_the_video_a_canvas_needs_no_more_memory(pipe):
    parts = []
    for side in (16, 32, 64):
        settings = replace(pipe.settings, size=None if side == 16 else (4, side, side))
        sizes = pipe.batch_sizes(settings, 1, Resources(cache="off", tile_batch=4, free=1 << 33))
        parts.append(memory_estimate(pipe.recipe, sizes))
    assert parts[2]["videos"] == 4 * parts[1]["videos"] == 16 * parts[0]["videos"]
    rest = [{k: v for k, v in p.items() if k not in ("videos", "total")} for p in parts]
    assert rest[0] == rest[1] == rest[2]
