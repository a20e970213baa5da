"""Preparing folders: what is found, refused, put right, skipped and gone on with."""

import json
import struct
import wave
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.entries import read_json_lines
from hpdm_core.data.folders import plan_folder
from hpdm_core.data.journal import JOURNAL
from hpdm_core.data.plan import DecodingOptions, SourceVideo, targets
from hpdm_core.data.prepare import prepare
from hpdm_core.data.transcode import fit
from hpdm_core.data.video_io import decode_sequential, write_mp4
from hpdm_core.errors import DataError
from hpdm_core.progress import NoProgress
from hpdm_core.runs.prep import run_prep_folder, run_prep_shapes

from .conftest import smooth_video


def prep(root: Path, source: Path, **options):
    return run_prep_folder(root, source=source, progress=NoProgress(), **options)


def damaged(path: Path) -> None:
    """Turn bytes of a video's pictures over, here and there."""
    data = bytearray(path.read_bytes())
    start, end = data.find(b"mdat"), data.find(b"moov")
    for place in range(start + (end - start) // 3, end - 100, 37):
        data[place] ^= 0xA5
    path.write_bytes(data)


def fill(folder: Path) -> None:
    """Videos good and bad."""
    video = smooth_video(0, frames=24)
    for name in ("good/one.mp4", "good/Two.MP4", "other/nested/three.mp4", "bad/damaged.mp4"):
        write_mp4(folder / name, smooth_video(len(name), frames=24), 12)
    damaged(folder / "bad/damaged.mp4")
    write_mp4(folder / "bad/short.mp4", video[:5], 12)
    (folder / "bad/empty.mp4").touch()
    (folder / "bad/text.mp4").write_text("<html>not found</html>")
    whole = (folder / "good/one.mp4").read_bytes()
    (folder / "bad/no-index.mp4").write_bytes(whole[: len(whole) // 2])
    sound(folder / "bad/sound.avi")
    (folder / "good/notes.txt").write_text("not a video, and not named like one")
    (folder / "good/._one.mp4").write_text("a file manager's litter")


def sound(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(8000))


@pytest.fixture
def mixed(tmp_path, in_process):
    fill(tmp_path / "source")
    return tmp_path / "source"


def test_each_bad_file_is_refused_with_its_reason(tmp_path, mixed):
    result = prep(tmp_path / "data", mixed, name="mixed")
    assert result["videos"] == 3
    rejected = {
        line["source"]: line for line in read_json_lines(tmp_path / "data/mixed/rejected.jsonl")
    }
    assert {name: line["problem"] for name, line in rejected.items()} == {
        "bad/damaged.mp4": "corrupted",
        "bad/empty.mp4": "empty",
        "bad/no-index.mp4": "not a video",
        "bad/short.mp4": "too short",
        "bad/sound.avi": "not a video",
        "bad/text.mp4": "not a video",
    }
    assert rejected["bad/short.mp4"]["detail"] == "5 frames, fewer than 16"
    assert "sound only" in rejected["bad/sound.avi"]["detail"]
    assert "text" in rejected["bad/text.mp4"]["detail"]
    assert result["rejected"] == {"not a video": 3, "corrupted": 1, "empty": 1, "too short": 1}
    assert result["usable"].startswith("3 of 9 videos usable: 3 not a video, ")
    assert not list((tmp_path / "data").rglob("*partial*"))


def test_sub_folders_are_classes(tmp_path, mixed):
    prep(tmp_path / "data", mixed, name="mixed")
    dataset = open_dataset(tmp_path / "data", "mixed")
    assert dataset.classes == ("bad", "good", "other/nested")
    assert {e.path: (e.label, e.class_name) for e in dataset.entries} == {
        "videos/good/one.mp4": (1, "good"),
        "videos/good/Two.mp4": (1, "good"),
        "videos/other/nested/three.mp4": (2, "other/nested"),
    }
    for entry in dataset.entries:
        frames = np.stack(list(decode_sequential(dataset.file(entry))))
        assert frames.shape == (entry.num_frames, entry.height, entry.width, 3) == (24, 48, 64, 3)


def test_folders_named_like_splits_are_splits(tmp_path, in_process):
    for name in ("train/cat/a.mp4", "train/dog/b.mp4", "Test/cat/c.mp4"):
        write_mp4(tmp_path / "source" / name, smooth_video(0), 12)
    result = prep(tmp_path / "data", tmp_path / "source", name="s")
    dataset = open_dataset(tmp_path / "data", "s")
    assert result["splits"] == {"test": 1, "train": 2}
    assert dataset.classes == ("cat", "dog")
    assert [e.class_name for e in dataset.split("test")] == ["cat"]
    assert "taken for splits" in result["notes"][0]


def test_unchanged_files_are_skipped_and_changed_ones_made_anew(tmp_path, mixed):
    first = prep(tmp_path / "data", mixed, name="mixed")
    made = tmp_path / "data/mixed/videos/good/one.mp4"
    before = made.stat().st_mtime_ns
    again = prep(tmp_path / "data", mixed, name="mixed")
    assert (first["skipped_unchanged"], again["skipped_unchanged"]) == (0, 9)
    assert made.stat().st_mtime_ns == before
    (mixed / "good/one.mp4").touch()  # another time, the same bytes
    assert prep(tmp_path / "data", mixed, name="mixed")["skipped_unchanged"] == 9
    assert made.stat().st_mtime_ns == before
    write_mp4(mixed / "good/one.mp4", smooth_video(9, frames=30), 12)
    write_mp4(mixed / "bad/short.mp4", smooth_video(9, frames=20), 12)
    (mixed / "good/Two.MP4").unlink()
    changed = prep(tmp_path / "data", mixed, name="mixed")
    entries = {e.path: e.num_frames for e in open_dataset(tmp_path / "data", "mixed").entries}
    assert changed["skipped_unchanged"] == 6
    assert entries["videos/good/one.mp4"] == 30
    assert entries["videos/bad/short.mp4"] == 20
    assert not (tmp_path / "data/mixed/videos/good/Two.mp4").exists()


def test_other_settings_make_everything_anew(tmp_path, mixed):
    prep(tmp_path / "data", mixed, name="mixed")
    result = prep(tmp_path / "data", mixed, name="mixed", min_frames=4, size=(24, 24))
    assert result["skipped_unchanged"] == 0
    assert result["videos"] == 4
    assert result["sizes"] == {"24x32": 4}


class Interrupt(NoProgress):
    """Presses Ctrl-C after some videos."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, amount: int = 1, **fields: str) -> None:
        self.left -= amount
        if self.left < 0:
            raise KeyboardInterrupt


def test_an_interrupted_run_leaves_no_data_set_and_goes_on_where_it_stopped(tmp_path, mixed):
    with pytest.raises(KeyboardInterrupt):
        run_prep_folder(tmp_path / "data", source=mixed, name="m", progress=Interrupt(4))
    with pytest.raises(DataError, match="hpdm prep"):
        open_dataset(tmp_path / "data", "m")
    folder = tmp_path / "data/m"
    with (folder / JOURNAL).open("a") as journal:
        journal.write('{"source": "good/o')  # the line that was being written
    assert not list(folder.rglob("*partial*"))
    result = prep(tmp_path / "data", mixed, name="m")
    assert (result["skipped_unchanged"], result["videos"]) == (5, 3)
    assert not (folder / JOURNAL).exists()


def test_a_folder_of_another_data_set_is_not_overwritten(tmp_path, mixed):
    prep(tmp_path / "data", mixed / "good", name="m")
    with pytest.raises(DataError, match=r"holds another data set.*--name"):
        prep(tmp_path / "data", mixed / "other", name="m")


def test_a_dry_run_counts_and_writes_nothing(tmp_path, mixed):
    result = prep(tmp_path / "data", mixed, name="m", dry_run=True)
    assert (result["files"], result["classes"]) == (9, 3)
    assert result["bytes"] > 10_000
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, r"is not a folder; got nothing there"),
        (lambda folder: folder.write_text("x"), r"is not a folder; got a file"),
        (lambda folder: folder.mkdir(), r"no video in .*\.mp4"),
        (
            lambda folder: write_mp4(folder / "a.mp4", smooth_video(0)[:3], 9),
            r"0 of 1 videos usable: 1 too short .*rejected\.jsonl lists each",
        ),
    ],
)
def test_a_useless_source_is_one_clear_message(tmp_path, make, message):
    make(tmp_path / "source")
    with pytest.raises(DataError, match=message):
        prep(tmp_path / "data", tmp_path / "source", name="m")


def test_names_that_clash_stay_apart():
    names = ["a.avi", "a.mp4", "A.mov", "b.mp4", "c/a.mp4", "a.avi.mkv"]
    made = targets([SourceVideo(file=None, name=name) for name in names])
    assert made["b.mp4"] == "videos/b.mp4"
    assert made["c/a.mp4"] == "videos/c/a.mp4"
    assert len({target.lower() for target in made.values()}) == len(names)


def test_links_that_lead_in_circles_end(tmp_path, in_process):
    write_mp4(tmp_path / "source/a/v.mp4", smooth_video(0), 12)
    (tmp_path / "source/a/up").symlink_to(tmp_path / "source", target_is_directory=True)
    assert prep(tmp_path / "data", tmp_path / "source", name="m")["videos"] == 1


def test_a_rotation_flag_is_applied(tmp_path, in_process):
    path = tmp_path / "source/turned.mp4"
    video = smooth_video(3)
    write_mp4(path, video, 12)
    set_rotation(path)
    prep(tmp_path / "data", tmp_path / "source", name="m")
    made = np.stack(list(decode_sequential(tmp_path / "data/m/videos/turned.mp4")))
    assert made.shape == (24, 64, 48, 3)
    clockwise = np.rot90(video, -1, axes=(1, 2))
    assert np.abs(made.astype(int) - clockwise).mean() < 4


def set_rotation(path: Path) -> None:
    """Write 'turn a quarter clockwise' into the track header, as phones do."""
    data = bytearray(path.read_bytes())
    matrix = data.find(b"tkhd") + 4 + 40
    fixed = 1 << 16
    data[matrix : matrix + 36] = struct.pack(
        ">9i", 0, fixed, 0, -fixed, 0, 0, 48 * fixed, 0, 1 << 30
    )
    path.write_bytes(data)


def test_a_variable_rate_becomes_constant(tmp_path, in_process):
    path = tmp_path / "source/pause.mp4"
    path.parent.mkdir()
    video = smooth_video(3, frames=20)
    # Ten frames at 10 per second, a pause of a second, ten more.
    times = [k if k < 10 else k + 10 for k in range(20)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for pixels, time in zip(video, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    result = prep(tmp_path / "data", tmp_path / "source", name="m")
    entry = open_dataset(tmp_path / "data", "m").entries[0]
    made = np.stack(list(decode_sequential(tmp_path / "data/m" / entry.path))).astype(int)
    assert result["notes"] == ["1 with variable frame rate"]
    assert (entry.num_frames, entry.fps) == (30, 10.0)
    shown = [k if k < 10 else max(9, k - 10) for k in range(30)]
    assert np.abs(made - video[shown]).mean() < 4


def test_sound_and_odd_sizes_do_no_harm(tmp_path, in_process):
    path = tmp_path / "source/odd.mkv"
    path.parent.mkdir()
    video = smooth_video(3, height=49, width=65)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=12)
        stream.height, stream.width, stream.pix_fmt = 49, 65, "bgr0"
        audio = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for pixels in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 16000), np.int16), format="s16", layout="mono"
        )
        silence.rate = 8000
        container.mux(audio.encode(silence))
        container.mux(audio.encode(None))
    prep(tmp_path / "data", tmp_path / "source", name="m")
    made = np.stack(list(decode_sequential(tmp_path / "data/m/videos/odd.mp4"))).astype(int)
    assert made.shape == (24, 48, 64, 3)
    assert np.abs(made - video[:, :48, :64]).mean() < 4


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(240, 320, (64, 86)), (320, 240, (86, 64)), (64, 64, (64, 64)), (50, 41, (50, 40))],
)
def test_a_training_copy_covers_the_size_and_is_never_enlarged(height, width, expected):
    assert fit(np.zeros((height, width, 3), np.uint8), (64, 64)).shape[:2] == expected


def test_shapes_grow_without_redrawing(tmp_path, in_process):
    options = {"size": 32, "frames": 4, "progress": NoProgress()}
    assert run_prep_shapes(tmp_path, num=18, **options)["skipped_unchanged"] == 0
    assert run_prep_shapes(tmp_path, num=21, **options)["skipped_unchanged"] == 18
    dataset = open_dataset(tmp_path, "shapes")
    assert len(dataset.classes) == 18
    assert [entry.label for entry in dataset.entries] == [*range(18), 0, 1, 2]
    assert all(entry.caption for entry in dataset.entries)
    assert run_prep_shapes(tmp_path, num=18, seed=1, **options)["skipped_unchanged"] == 0


def test_workers_make_the_same_files(tmp_path, video_folder):
    plan = plan_folder(
        tmp_path / "many", name="m", source=video_folder, options=DecodingOptions(), workers=2
    )
    many = prepare(plan, NoProgress())
    one = prepare(
        replace(plan, folder=tmp_path / "one", videos=plan.videos[:3], workers=1), NoProgress()
    )
    assert many["videos"] == 5
    assert one["videos"] == 3
    for name in ("a/0.mp4", "a/1.mp4", "a/2.mp4"):
        made = [(tmp_path / place / "videos" / name).read_bytes() for place in ("one", "many")]
        assert made[0] == made[1]


def test_a_damaged_manifest_is_named_with_its_line(tmp_path, json_dataset):
    manifest = json_dataset.folder / "manifest.jsonl"
    good = manifest.read_text()
    for bad, message in [
        ("{", r"manifest\.jsonl:7 is not JSON"),
        (json.dumps({"path": "x.mp4"}), r":7 lacks a field"),
        (good.splitlines()[0].replace("videos/a", "../a"), r":7 leaves the data set's folder"),
    ]:
        manifest.write_text(good + bad + "\n")
        with pytest.raises(DataError, match=message):
            open_dataset(tmp_path / "data", "waves")


def test_real_bad_files(tmp_path, shared_data, in_process):
    with pytest.raises(DataError, match=r"0 of 4 videos usable"):
        prep(tmp_path, shared_data / "bad", name="bad")
    problems = [line["problem"] for line in read_json_lines(tmp_path / "bad/rejected.jsonl")]
    assert problems == ["corrupted", "empty", "not a video", "truncated"]
