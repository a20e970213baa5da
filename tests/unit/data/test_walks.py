"""First-person walks: maps, paths and the plan; then, where the engine is, what it draws."""

import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.video_io import decode_sequential
from hpdm_core.data.walk_map import CELL, LAMP, PATCH, WALL, draw_layout, place_command, udmf, wad
from hpdm_core.data.walk_path import CLEARANCE, FINE, MOTIONS, SPEEDS, WalkPath, draw_path
from hpdm_core.data.walk_render import (
    FIELD_OF_VIEW,
    MAX_SIZE,
    MIN_SIZE,
    SCREEN_HEIGHTS,
    VARIANTS,
    Engine,
    layouts,
    screen_for,
    shrink,
)
from hpdm_core.data.walk_scenes import SCENES, SKY, WALK_CLASSES
from hpdm_core.data.walks import WalkOptions, plan_walks
from hpdm_core.errors import DataError
from hpdm_core.progress import NoProgress
from hpdm_core.runs.prep import run_prep_vizdoom

ROOT = Path(__file__).resolve().parents[3]
SOME = range(0, len(SCENES) * VARIANTS, 5)


def options(**changes: int) -> WalkOptions:
    return WalkOptions(**{"frames": 8, "size": 32, "seed": 0, "engine": "test"} | changes)


# Without the engine


def test_classes_and_captions_are_words():
    assert len(WALK_CLASSES) == len(set(WALK_CLASSES)) == 12
    assert all(re.fullmatch("[a-z]+(-[a-z]+)+", name) for name in WALK_CLASSES)
    assert len({scene.words for scene in SCENES}) == 12
    walls = [scene.walls[0] for scene in SCENES]
    assert len(set(walls)) == 12  # recognised by what they are made of


@pytest.mark.parametrize("number", SOME)
def test_every_line_of_a_map_has_the_right_cells_on_its_sides(number):
    scene, layout = SCENES[number // VARIANTS], layouts()[number]
    text = udmf(scene, layout)
    found = re.findall(r"vertex { x = (\S+); y = (\S+);", text)
    vertices = [(float(x), float(y)) for x, y in found]
    sectors = [int(s) for s in re.findall(r"sidedef { sector = (\d+);", text)]
    lines = re.findall(r"linedef { v1 = (\d+); v2 = (\d+); sidefront = (\d+);(.*)}", text)
    seen = 0
    for first, second, front, rest in lines:
        start, end = np.array(vertices[int(first)]), np.array(vertices[int(second)])
        along = (end - start) / CELL
        assert np.abs(along).sum() == 1
        right = np.array([along[1], -along[0]])
        back = re.search(r"sideback = (\d+)", rest)
        sides = ((right, sectors[int(front)]), (-right, sectors[int(back[1])] if back else WALL))
        for side, sector in sides:
            column, row = np.floor(((start + end) / 2 + side) / CELL).astype(int)
            assert layout.cells[row, column] == sector
        seen += 1
    changes = [np.count_nonzero(np.diff(layout.cells, axis=axis)) for axis in (0, 1)]
    assert seen == sum(changes)


def test_maps_differ_and_are_drawn_alike_each_time():
    drawn = {layout.cells.tobytes() for layout in layouts()}
    assert len(drawn) == len(SCENES) * VARIANTS
    again = draw_layout(SCENES[1], 2)
    assert np.array_equal(again.cells, layouts()[VARIANTS + 2].cells)
    assert again.things == layouts()[VARIANTS + 2].things != ()
    assert {PATCH, LAMP, WALL} <= set(np.unique(again.cells))


def test_the_file_of_maps_lists_its_parts():
    data = wad([(SCENES[0], layouts()[0]), (SCENES[1], layouts()[VARIANTS])])
    kind, count, directory = struct.unpack("<4sii", data[:12])
    entries = list(struct.iter_unpack("<ii8s", data[directory:]))
    names = [name.rstrip(b"\0").decode() for _, _, name in entries]
    assert kind == b"PWAD"
    assert len(entries) == count
    assert names[-8:] == [
        "MAP01", "TEXTMAP", "BEHAVIOR", "ENDMAP", "MAP02", "TEXTMAP", "BEHAVIOR", "ENDMAP",
    ]  # fmt: skip
    start, size, _ = entries[names.index("TEXTMAP")]
    assert data[start : start + size].decode() == udmf(SCENES[0], layouts()[0])


@pytest.mark.parametrize("frames", [1, 32, 64])
def test_paths_are_gentle_and_keep_clear_of_walls(frames):
    for number in SOME:
        path = draw_path(layouts()[number], frames, np.random.default_rng(number))
        assert path.places.shape == (frames, 2)
        assert path.angles.shape == (frames,)
        # Distance to the squares of solid cells, against the distance transform that was used.
        corners = np.argwhere(layouts()[number].solid())[:, ::-1] * CELL
        gap = np.maximum(corners - path.places[:, None], path.places[:, None] - corners - CELL)
        distance = np.linalg.norm(gap.clip(0), axis=-1).min()
        assert distance >= CLEARANCE - 2 * CELL / FINE
        steps = np.linalg.norm(np.diff(path.places, axis=0), axis=1)
        assert (steps <= SPEEDS[1] + 1e-9).all()
        assert (steps >= 0.4 * SPEEDS[0]).all()
        assert (np.abs(np.diff(path.angles)) <= 3.0).all()


def test_motions_in_words_are_the_motions():
    seen = set()
    for seed in range(40):
        path = draw_path(layouts()[0], 32, np.random.default_rng(seed))
        halves = path.angles[15] - path.angles[0], path.angles[31] - path.angles[16]
        expected = tuple(int(np.sign(half)) if abs(half) > 8 else 0 for half in halves)
        assert MOTIONS[path.motion] == expected
        steps = np.diff(path.places, axis=0)
        heading = np.rad2deg(np.arctan2(steps[:, 1], steps[:, 0]))
        apart = (heading - path.angles[1:] + 180) % 360 - 180
        assert np.abs(apart).max() < 1e-6  # it walks where it looks
        seen.add(path.motion)
    assert seen == set(MOTIONS)


def test_paths_repeat_with_their_seed():
    first, again, other = (draw_path(layouts()[3], 16, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(first.places, again.places)
    assert not np.array_equal(first.places, other.places)


def test_commands_of_places_are_whole_numbers():
    assert place_command(1.5, 2.0, -90.0) == "puke 1 98304 131072 49152"
    assert place_command(0.0, 0.0, 359.9999) == "puke 1 0 0 0"


@pytest.mark.parametrize("size", [16, 20, 64, 128, 256, 300, 400, 512])
def test_a_screen_is_large_enough(size):
    height, scale = screen_for(size)
    assert height >= scale * size
    assert scale >= (4 if size <= 256 else 2)
    assert height in SCREEN_HEIGHTS


def test_shrinking_takes_rounded_means_of_the_middle():
    screen = np.random.default_rng(0).integers(0, 256, size=(18, 24, 3), dtype=np.uint8)
    expected = screen[1:17, 4:20].reshape(4, 4, 4, 4, 3).mean(axis=(1, 3))
    assert np.abs(shrink(screen, 4, 4) - expected).max() <= 0.5


def test_a_plan_takes_turns_and_its_maker_can_be_sent_to_workers(tmp_path):
    plan = plan_walks(
        tmp_path, name="w", num=5, scenes=["rock-cave", "brick-maze"],
        options=options(), workers=None,
    )  # fmt: skip
    assert plan.classes == ("brick-maze", "rock-cave")
    assert [video.name for video in plan.videos] == [
        "brick-maze-00000", "rock-cave-00000", "brick-maze-00001", "rock-cave-00001",
        "brick-maze-00002",
    ]  # fmt: skip
    assert [video.class_name for video in plan.videos[:2]] == ["brick-maze", "rock-cave"]
    assert pickle.loads(pickle.dumps(plan.make)) == plan.make


def test_another_engine_or_seed_makes_all_anew():
    settings = [options().settings, options(seed=1).settings]
    settings.append(WalkOptions(frames=8, size=32, seed=0, engine="other").settings)
    assert len({str(s) for s in settings}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": MIN_SIZE - 2}, "--size is out of range; got 14; expected 16 to 512"),
        ({"size": MAX_SIZE + 2}, "--size is out of range; got 514"),
        ({"size": 33}, "--size must be even; got 33; expected 34"),
        ({"frames": 0}, "--frames is out of range; got 0; expected 1 to 128"),
        ({"frames": 129}, "--frames is out of range"),
    ],
)
def test_sizes_out_of_range_are_refused(changes, message):
    with pytest.raises(DataError, match=re.escape(message)):
        options(**changes)


@pytest.mark.parametrize(
    ("num", "scenes", "message"),
    [
        (0, [], "--num is out of range; got 0; expected 1 to 1,000,000"),
        (1, ["brik-maze"], "there is no such scene; got 'brik-maze'.*did you mean brick-maze?"),
        (1, ["???"], "there is no such scene.*mountain-canyon$"),
    ],
)
def test_absent_scenes_are_refused(tmp_path, num, scenes, message):
    with pytest.raises(DataError, match=message):
        plan_walks(tmp_path, name="w", num=num, scenes=scenes, options=options(), workers=None)


def test_without_the_package_the_message_has_the_line_that_installs_it(tmp_path):
    code = (
        "import sys; sys.modules['vizdoom'] = None; sys.argv[1:] = ['prep', 'vizdoom', 'data'];"
        "from hpdm_cli.app import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install 'hpdm[vizdoom]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


# With the engine


@pytest.fixture
def vizdoom():
    return pytest.importorskip("vizdoom")


@pytest.fixture(scope="module")
def engine():
    pytest.importorskip("vizdoom")
    with Engine(48) as running:
        yield running


def still(number: int, angles: list[float]) -> WalkPath:
    """Return a path that stays in one place and turns by `angles`."""
    path = draw_path(layouts()[number], 1, np.random.default_rng(0))
    places = np.repeat(path.places, len(angles), axis=0)
    return WalkPath(places=places, angles=path.angles[0] + np.array(angles), motion="")


@pytest.mark.parametrize("degrees", [6.0, -10.0])
def test_turning_left_moves_the_picture_right_by_the_field_of_view(engine, degrees):
    frames = engine.render(0, still(0, [0.0, degrees])).astype(float)
    focal = 24 / np.tan(np.deg2rad(FIELD_OF_VIEW / 2))
    expected = focal * np.tan(np.deg2rad(degrees))
    middle = frames[0][:, 18:30]
    shifts = range(-12, 13)
    errors = [np.square(frames[1][:, 18 + d : 30 + d] - middle).mean() for d in shifts]
    assert abs(shifts[int(np.argmin(errors))] - expected) <= 1


def test_the_picture_depends_on_the_place_alone(engine):
    number = VARIANTS  # hedges under the sky
    path = draw_path(layouts()[number], 16, np.random.default_rng(3))
    order = [0, 15, 0]
    there_and_back = WalkPath(places=path.places[order], angles=path.angles[order], motion="")
    first, away, again = engine.render(number, there_and_back)
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - away).mean() > 5


def test_the_same_walk_is_the_same_whatever_was_drawn_before(engine):
    path = draw_path(layouts()[8 * VARIANTS], 6, np.random.default_rng(0))
    first = engine.render(8 * VARIANTS, path)
    engine.render(0, still(0, [0.0]))
    assert np.array_equal(engine.render(8 * VARIANTS, path), first)
    with Engine(48) as another:
        assert np.array_equal(another.render(8 * VARIANTS, path), first)


def test_a_data_set_has_all_scenes_and_no_two_alike(tmp_path, vizdoom, in_process):
    run_prep_vizdoom(tmp_path, num=24, size=32, frames=6, progress=NoProgress())
    dataset = open_dataset(tmp_path, "vizdoom")
    assert dataset.classes == WALK_CLASSES
    assert [entry.label for entry in dataset.entries] == [*range(12), *range(12)]
    means = []
    for entry in dataset.entries:
        scene = SCENES[entry.label]
        assert entry.caption.removesuffix(f" in {scene.words}") in MOTIONS
        assert (entry.num_frames, entry.height, entry.width) == (6, 32, 32)
        video = np.stack(list(decode_sequential(dataset.folder / entry.path))).astype(float)
        assert video.shape == (6, 32, 32, 3)
        assert np.abs(np.diff(video, axis=0)).mean(axis=(1, 2, 3)).min() > 1  # never stands
        assert video.std() > 10
        means.append(video.mean(axis=0))
    distances = np.abs(np.array(means)[:, None] - np.array(means)).mean(axis=(2, 3, 4))
    assert distances[~np.eye(24, dtype=bool)].min() > 5


def test_a_data_set_grows_and_files_repeat_bit_for_bit(tmp_path, vizdoom):
    common = {"size": 16, "frames": 4, "progress": NoProgress(), "scenes": ["blue-vault"]}
    run_prep_vizdoom(tmp_path, name="a", num=4, workers=2, **common)
    grown = run_prep_vizdoom(tmp_path, name="a", num=6, **common)
    assert grown["skipped_unchanged"] == 4
    run_prep_vizdoom(tmp_path, name="b", num=3, **common)
    run_prep_vizdoom(tmp_path, name="c", num=3, seed=1, **common)
    files = [sorted((tmp_path / name / "videos").iterdir()) for name in "abc"]
    assert [len(found) for found in files] == [6, 3, 3]
    for one, same, other in zip(*files, strict=False):
        assert one.read_bytes() == same.read_bytes() != other.read_bytes()


def test_engines_end_with_the_command_and_leave_nothing_behind(tmp_path, vizdoom):
    # Sockets of worker processes lie in the temporary folder, and their paths must be short.
    short = Path(tempfile.mkdtemp(prefix="w"))
    places = {"here": tmp_path, "temporary": short}
    words = ["prep", "vizdoom", "data", "--num", "4", "--size", "16", "--frames", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "hpdm_cli", *words, "--workers", "2"],
        cwd=places["here"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(places["temporary"])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data     4 of 4 videos usable\n")
    assert "engine" not in done.stdout + done.stderr  # which writes to streams that it inherits
    assert [path.name for path in places["here"].iterdir()] == ["data"]
    # An engine's folder goes when its process has been told to end.
    assert not list(short.glob("hpdm-walks-*"))
    shutil.rmtree(short)


def test_all_screens_exist(vizdoom):
    for height in SCREEN_HEIGHTS:
        assert hasattr(vizdoom.ScreenResolution, f"RES_{height * 4 // 3}X{height}")


def test_all_textures_exist_and_stand_still(vizdoom):
    package = Path(vizdoom.__file__).parent
    game = (package / "freedoom2.wad").read_bytes()
    count, directory = struct.unpack("<ii", game[4:12])
    lumps = {
        name.rstrip(b"\0").decode(): (start, size)
        for start, size, name in struct.iter_unpack(
            "<ii8s", game[directory : directory + 16 * count]
        )
    }
    start, _ = lumps["TEXTURE1"]
    (number,) = struct.unpack("<i", game[start : start + 4])
    offsets = struct.unpack(f"<{number}i", game[start + 4 : start + 4 + 4 * number])
    walls = {game[start + o : start + o + 8].rstrip(b"\0").decode() for o in offsets}
    animated = zipfile.ZipFile(package / "vizdoom.pk3").read("animated.lmp")
    for scene in SCENES:
        sides = {*scene.walls, *scene.blocks}
        flats = {scene.floor, scene.patch, scene.ceiling, scene.lamp, scene.block_top} - {SKY, ""}
        assert sides <= walls
        assert flats <= set(lumps)
        assert not any(name.encode() + b"\0" in animated for name in sides | flats)
