"""Writing and reading videos: what goes in comes out, whichever decoder reads it."""

from itertools import pairwise

import av
import numpy as np
import pytest
from PIL import Image

from hpdm_core.data.pictures import contact_sheet, video_grid, write_gif, write_png, write_webp
from hpdm_core.data.video_io import (
    GOP,
    SequentialVideo,
    UnusableVideo,
    VideoReader,
    decode_sequential,
    write_mp4,
)
from hpdm_core.errors import DataError
from hpdm_core.files import atomic_path

from .conftest import smooth_video


@pytest.fixture
def mp4(tmp_path):
    path = tmp_path / "video.mp4"
    write_mp4(path, smooth_video(0, frames=40), 30000 / 1001)
    return path


def test_what_is_written_is_read_back(mp4):
    frames = np.stack(list(decode_sequential(mp4)))
    assert np.abs(frames.astype(int) - smooth_video(0, frames=40)).mean() < 3


def test_the_canonical_form_has_even_keyframes_no_b_frames_and_a_constant_rate(mp4):
    with av.open(str(mp4)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 30000 / 1001 or stream.average_rate.denominator == 1001
        packets = [packet for packet in container.demux(stream) if packet.size]
    assert [k for k, packet in enumerate(packets) if packet.is_keyframe] == [0, 12, 24, 36]
    assert GOP == 12
    assert [packet.pts for packet in packets] == [packet.dts for packet in packets]
    assert len({b.pts - a.pts for a, b in pairwise(packets)}) == 1


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_random_access_gives_the_frames_of_sequential_decoding(mp4, backend):
    if backend == "decord":
        pytest.importorskip("decord")
    frames = np.stack(list(decode_sequential(mp4)))
    reader = VideoReader(mp4, backend=backend)
    assert reader.num_frames == 40
    for indices in ([0], [39], [5, 6, 7], [3, 11, 12, 30], [0, 13, 26, 39], [7, 7, 8]):
        assert np.array_equal(reader.read(np.array(indices)), frames[indices])


@pytest.mark.parametrize("backend", ["decord", "pyav"])
@pytest.mark.parametrize("contents", [None, b"", b"text, not a video"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, backend, contents):
    if backend == "decord":
        pytest.importorskip("decord")
    path = tmp_path / "bad.mp4"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(UnusableVideo, match=r"bad\.mp4"):
        VideoReader(path, backend=backend)


def test_odd_sizes_are_padded(tmp_path):
    write_mp4(tmp_path / "odd.mp4", smooth_video(0, height=33, width=47), 10)
    frames = np.stack(list(decode_sequential(tmp_path / "odd.mp4")))
    assert frames.shape == (24, 34, 48, 3)
    assert np.abs(frames[:, :33, :47].astype(int) - smooth_video(0, height=33, width=47)).mean() < 3


def test_nothing_half_written_stays(tmp_path):
    def broken():
        yield smooth_video(0)[0]
        raise RuntimeError("the source broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        write_mp4(tmp_path / "video.mp4", broken(), 10)
    with pytest.raises(DataError, match="no frames"):
        write_mp4(tmp_path / "video.mp4", [], 10)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "kept.txt").write_text("old")

    def interrupted():
        with atomic_path(tmp_path / "kept.txt") as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("kept.txt", "old")]


def test_sequential_decoding_reports_rate_and_count(mp4):
    with SequentialVideo(mp4) as video:
        assert video.fps == pytest.approx(29.97, abs=0.01)
        assert video.claimed_frames == 40
        assert video.has_times
        assert len(video.packet_times()) == 40


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv"])
def test_headers_whose_text_is_not_utf8_do_no_harm(tmp_path, suffix):
    path = tmp_path / f"titled.{suffix}"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "QQQQQQQQ"
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode()])
    data = path.read_bytes()
    assert data.count(b"QQQQQQQQ") == 1
    path.write_bytes(data.replace(b"QQQQQQQQ", b"\xff\xfe\x80\xc3QQQQ"))
    with SequentialVideo(path) as video:
        assert len(list(video.frames())) == 1


def test_animations_keep_frames_and_speed(tmp_path):
    video = smooth_video(1, frames=8)
    write_gif(tmp_path / "v.gif", video, 12.5)
    write_webp(tmp_path / "v.webp", video, 12.5)
    for name in ("v.gif", "v.webp"):
        with Image.open(tmp_path / name) as image:
            assert image.n_frames == 8
            assert image.size == (64, 48)
            image.seek(1)
            image.load()
            assert image.info["duration"] == 80
            shown = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(shown - video[1]).mean() < 8


def test_a_png_shows_every_frame_in_order(tmp_path):
    video = smooth_video(1, frames=10)
    write_png(tmp_path / "v.png", video)
    sheet = np.asarray(Image.open(tmp_path / "v.png"))
    assert sheet.shape == (96, 512, 3)
    assert np.array_equal(sheet[:48, 64:128], video[1])
    assert np.array_equal(sheet[48:, 64:128], video[9])


def test_a_contact_sheet_shows_first_and_last_frames_under_their_captions():
    videos = [smooth_video(0, frames=16), smooth_video(1, frames=3, height=96)]
    sheet = np.asarray(contact_sheet(videos, ["a wave", "another"], columns=4))
    # A line of 18 pixels above and below each row, gaps of 4 between frames.
    assert sheet.shape == ((18 + 96 + 18) * 2, 4 * 128 + 3 * 4, 3)
    assert np.array_equal(sheet[18:114:2, 0:128:2], videos[0][0])
    assert np.array_equal(sheet[18:114:2, -128::2], videos[0][15])
    assert sheet[:18].min() < 100  # there is writing
    assert sheet[114:132].min() < 150  # frame numbers


@pytest.mark.parametrize("width", [16, 24, 48, 50])
def test_narrow_videos_are_read_too(tmp_path, width):
    # decord alone gives up on most of these widths.
    frames = np.arange(6 * 32 * width * 3, dtype=np.uint32).astype(np.uint8)
    write_mp4(tmp_path / "v.mp4", frames.reshape(6, 32, width, 3), 8)
    read = VideoReader(tmp_path / "v.mp4").read(np.array([1, 4]))
    expected = np.stack(list(decode_sequential(tmp_path / "v.mp4")))[[1, 4]]
    assert np.array_equal(read, expected)


def test_a_grid_holds_every_video_in_its_place_magnified():
    videos = np.arange(3, dtype=np.uint8).repeat(2 * 4 * 5 * 3).reshape(3, 2, 4, 5, 3) + 1
    grid = video_grid(videos, columns=2, min_height=7)
    assert grid.shape == (2, 2 * 8, 2 * 10, 3)
    assert (grid[:, :8, :10] == 1).all()
    assert (grid[:, :8, 10:] == 2).all()
    assert (grid[:, 8:, :10] == 3).all()
    assert (grid[:, 8:, 10:] == 0).all()
