"""`hpdm_core.Videos`: files of each format, and the picture in a notebook."""

import base64
import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from hpdm_core.data.video_io import decode_sequential
from hpdm_core.errors import HpdmError
from hpdm_core.pipeline.conditions import Request
from hpdm_core.pipeline.videos import Videos


@pytest.fixture
def videos():
    # Flat colours, so that codecs leave them as they are.
    frames = np.zeros((2, 4, 16, 16, 3), np.uint8)
    frames[0, ..., 0], frames[1, ..., 2] = 200, 200
    requests = (Request(index=0, seed=3, label=1, class_name="a<b"), Request(index=1, seed=4))
    return Videos(frames=frames, fps=8.0, requests=requests)


def read(path):
    if path.suffix == ".mp4":
        return np.stack(list(decode_sequential(path)))
    with Image.open(path) as image:
        frames = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
    return np.stack(frames)


@pytest.mark.parametrize("name", ["mp4", "gif", "webp"])
def test_a_file_per_video_in_each_format(videos, tmp_path, name):
    paths = videos.save(tmp_path / "out", format=name)
    # "a<b" is no file name as it stands: what is replaced gets a hash, so that no two names meet.
    assert re.fullmatch(rf"00000_a-b-[0-9a-f]{{8}}_seed3\.{name}", paths[0].name)
    assert paths[1].name == f"00001_video_seed4.{name}"
    for path, video in zip(paths, videos.frames, strict=True):
        # Frames that are alike may be joined by GIF and WebP.
        assert np.abs(read(path)[0].astype(int) - video[0]).max() <= 8


def test_mp4_is_the_default_and_png_holds_all_frames(videos, tmp_path):
    assert {path.suffix for path in videos.save(tmp_path / "out")} == {".mp4"}
    assert read(videos.save(tmp_path, format="png")[0]).shape == (1, 16, 4 * 16, 3)


def test_a_path_with_a_suffix_takes_all_videos_side_by_side(videos, tmp_path):
    path = tmp_path / "below" / "both.gif"
    assert videos.save(path) == [path]
    picture = read(path)[0]
    assert picture.shape == (16, 32, 3)
    assert tuple(picture[0, 0]) == (200, 0, 0)
    assert tuple(picture[0, 31]) == (0, 0, 200)
    # A folder's name may end in anything else.
    assert videos.save(tmp_path / "v1.2")[0].parent == tmp_path / "v1.2"


def test_refusals(videos, tmp_path):
    with pytest.raises(HpdmError, match="unknown video format; got avi; expected one of mp4, gif"):
        videos.save(tmp_path, format="avi")
    (tmp_path / "file").write_text("")
    with pytest.raises(HpdmError, match=r"cannot write to .*file"):
        videos.save(tmp_path / "file")


def test_a_notebook_shows_an_animated_picture_and_no_script(videos):
    text = videos._repr_html_()
    picture = re.search(r'src="data:image/webp;base64,([^"]+)"', text)[1]
    with Image.open(BytesIO(base64.b64decode(picture))) as image:
        assert (image.format, image.size) == ("WEBP", (2 * 96, 96))
    assert "script" not in text
    assert "seed 3: a&lt;b" in text
    assert repr(videos) == "Videos(2 of 4x16x16x3 at 8 fps: seed 3: a<b; seed 4: unconditional)"
    assert len(videos) == 2
