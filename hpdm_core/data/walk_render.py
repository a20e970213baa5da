"""Rendering of first-person walks with ViZDoom: with our own maps and paths.

The package `vizdoom` is optional; this module imports it where an engine starts.

Axis legend: `t h w` frames, rows, columns; pixels are RGB, last axis, uint8.
"""

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import cache, partial
from multiprocessing.util import Finalize
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from einops import reduce

from hpdm_core.data.walk_map import Layout, draw_layout, map_name, place_command, wad
from hpdm_core.data.walk_path import WalkPath
from hpdm_core.data.walk_scenes import SCENES
from hpdm_core.errors import DataError

# Maps of each scene.
VARIANTS = 6
# Screen pixels along the side of one video pixel, as far as there is a screen for it.
SUPERSAMPLING = 4
# Of the square picture, in degrees.
FIELD_OF_VIEW = 80.0
# Heights of the engine's screens of 4:3.
SCREEN_HEIGHTS = (120, 150, 192, 240, 300, 384, 480, 600, 768, 960, 1050, 1200)
MIN_SIZE, MAX_SIZE = 16, 512
# Frames until field of view and height of the eye hold.
WARM_UP = 4
INSTALL = "pip install 'hpdm[vizdoom]'"
HIDDEN = (
    "hud", "minimal_hud", "weapon", "crosshair", "decals", "particles", "effects_sprites",
    "messages", "corpses", "screen_flashes",
)  # fmt: skip


def import_vizdoom() -> ModuleType:
    """Return the package.

    Raises:
        DataError: it is not installed.
    """
    try:
        import vizdoom
    except ImportError as error:
        raise DataError(
            "walks are rendered with the package vizdoom, which is not installed",
            got=str(error),
            remedy=f"install it with: {INSTALL}",
        ) from error
    return vizdoom


def screen_for(size: int) -> tuple[int, int]:
    """Return (height, pixels per video pixel) of the smallest screen that serves `size`."""
    scale = min(SUPERSAMPLING, SCREEN_HEIGHTS[-1] // size)
    return min(h for h in SCREEN_HEIGHTS if h >= scale * size), scale


@cache
def layouts() -> tuple[Layout, ...]:
    """Return all maps: those of scene `s` are number `VARIANTS * s` and the following."""
    return tuple(draw_layout(scene, variant) for scene in SCENES for variant in range(VARIANTS))


class Engine(contextlib.AbstractContextManager):
    """A running engine that draws frames of one size. Close it, or use `with`.

    Args:
        size: height and width of the frames in pixels.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._height, self._scale = screen_for(size)
        self._folder = tempfile.TemporaryDirectory(prefix="hpdm-walks-")
        self._game = self._start(import_vizdoom())

    def render(self, map_index: int, path: WalkPath) -> np.ndarray:
        """Draw a walk: (t, h, w, 3) uint8."""
        game = self._game
        game.set_doom_map(map_name(map_index))
        game.set_seed(1)  # of flames and the like
        game.new_episode()
        game.send_game_command(f"fov {round(self._field_of_view())}")
        self._look(path.places[0], path.angles[0])
        game.advance_action(WARM_UP)
        frames = []
        for place, angle in zip(path.places, path.angles, strict=True):
            self._look(place, angle)
            game.advance_action()
            screen = game.get_state().screen_buffer
            frames.append(shrink(screen, self._size, self._scale))
        return np.stack(frames)

    def _look(self, place: np.ndarray, angle: float) -> None:
        self._game.send_game_command(place_command(place[0], place[1], angle))

    def _field_of_view(self) -> float:
        """Return the field of view of the screen's width that gives the square its own."""
        width = self._height * 4 // 3
        half = math.tan(math.radians(FIELD_OF_VIEW / 2)) * width / (self._scale * self._size)
        return 2 * math.degrees(math.atan(half))

    def _start(self, vizdoom: ModuleType) -> Any:
        game = vizdoom.DoomGame()
        folder = Path(self._folder.name)
        maps = [(SCENES[i // VARIANTS], layout) for i, layout in enumerate(layouts())]
        (folder / "walks.wad").write_bytes(wad(maps))
        game.set_doom_game_path(str(Path(vizdoom.__file__).parent / "freedoom2.wad"))
        game.set_doom_scenario_path(str(folder / "walks.wad"))
        game.set_doom_config_path(str(folder / "engine.ini"))
        game.set_doom_map(map_name(0))
        width = self._height * 4 // 3
        game.set_screen_resolution(getattr(vizdoom.ScreenResolution, f"RES_{width}X{self._height}"))
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        for what in HIDDEN:
            getattr(game, f"set_render_{what}")(False)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_episode_timeout(0)
        game.add_game_args("-nomonsters +sv_cheats 1 +movebob 0")
        with _undisturbed(folder):
            game.init()
        return game

    def close(self) -> None:
        """End the engine's process and remove its files."""
        self._game.close()
        self._folder.cleanup()

    def __exit__(self, *_: object) -> None:
        self.close()


def shrink(screen: np.ndarray, size: int, scale: int) -> np.ndarray:
    """Return the middle of a screen (h, w, 3) as area means of `scale` x `scale` pixels, rounded.

    Args:
        screen: uint8, at least `scale * size` on each side.
        size: height and width of the result, which is uint8 too.
    """
    side = scale * size
    top, left = ((extent - side) // 2 for extent in screen.shape[:2])
    square = screen[top : top + side, left : left + side]
    # Rows first, and whole numbers: several times as fast as a mean over both axes.
    rows = reduce(square, "(h y) w c -> h w c", partial(_sum_as, np.uint16), y=scale)
    total = reduce(rows, "h (w x) c -> h w c", partial(_sum_as, np.uint32), x=scale)
    return ((total + scale**2 // 2) // scale**2).astype(np.uint8)


def _sum_as(dtype: type, values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return values.sum(axis=axes, dtype=dtype)


@contextlib.contextmanager
def _undisturbed(folder: Path) -> Iterator[None]:
    """Start an engine here: its files and words go to `folder`, and signals stay ours.

    The engine's process inherits the streams, and would write to them after we have ended. Its
    library puts its own handlers in place of ours. Its process, which inherits the mask, must not
    see Ctrl-C: it would end before finished work is saved.
    """
    here = os.getcwd()
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGABRT)
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {name: signal.getsignal(name) for name in names}
    os.chdir(folder)
    streams = {number: os.dup(number) for number in (1, 2)}
    with open("engine.log", "wb") as log:
        for number in streams:
            os.dup2(log.fileno(), number)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, own in streams.items():
            os.dup2(own, number)
            os.close(own)
        os.chdir(here)
        if in_main:
            for name, handler in handlers.items():
                if handler is not None:  # None: not set from Python, so nothing to put back
                    signal.signal(name, handler)


_engines: dict[int, Engine] = {}


def engine_of_this_process(size: int) -> Engine:
    """Return this process's engine for frames of `size`; started at first use.

    It ends with the process, also where a pool terminates that.
    """
    if size not in _engines:
        close_engines()
        if multiprocessing.parent_process() is not None:
            # A worker: its pool ends it by SIGTERM, which would leave the engine's process behind.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        _engines[size] = Engine(size)
        Finalize(None, close_engines, exitpriority=0)
    return _engines[size]


def close_engines() -> None:
    """End the engines of this process."""
    while _engines:
        _engines.popitem()[1].close()
