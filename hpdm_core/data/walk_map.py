"""Maps for first-person walks: walls, and the game file for the engine.

A map is a square grid of cells. Pillars stand `pitch` cells apart, walls close some of the gaps
between them, and what is left is floor. The file is a WAD of maps in the text format UDMF
(https://doomwiki.org/wiki/UDMF), which the engine completes itself.

Axis legend: grids are indexed [row, column] = [y, x]; a cell is `CELL` map units wide.
"""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hpdm_core.data.walk_scenes import Scene

CELL = 64
CELLS = 31
# What a cell is. All but walls are sectors; a block is one with a raised floor.
WALL, FLOOR, PATCH, LAMP, BLOCK, TALL_BLOCK = -1, 0, 1, 2, 3, 4
BLOCK_HEIGHTS = {BLOCK: 64, TALL_BLOCK: 128}
THINGS_PER_MAP = 40
# Number of the script that moves the player.
PLACE = 1


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One map.

    Args:
        cells: (CELLS, CELLS) int8, what each cell is; the rim is wall.
        things: (column, row) of each object, at the middle of its cell.
    """

    cells: np.ndarray
    things: tuple[tuple[int, int], ...]

    def solid(self) -> np.ndarray:
        """Return (CELLS, CELLS) bool: cells that a walker cannot enter."""
        solid = (self.cells == WALL) | (self.cells >= BLOCK)
        for column, row in self.things:
            solid[row, column] = True
        return solid


def draw_layout(scene: Scene, variant: int) -> Layout:
    """Draw one of the maps of a scene; the same arguments give the same map."""
    rng = np.random.default_rng((variant, *scene.name.encode()))
    cells = np.full((CELLS, CELLS), FLOOR, np.int8)
    _lay_patches(cells, scene.pitch, rng)
    stops = np.arange(0, CELLS, scene.pitch)
    centres = stops[:-1] + scene.pitch // 2
    cells[np.ix_(centres, centres)] = LAMP
    for row in stops:
        for column in stops:
            cells[row, column] = WALL
            if rng.random() < scene.joined:
                cells[row, column : column + scene.pitch] = WALL
            if rng.random() < scene.joined:
                cells[row : row + scene.pitch, column] = WALL
    if scene.blocks:
        _stack_blocks(cells, rng)
    cells[[0, -1], :] = cells[:, [0, -1]] = WALL
    return Layout(cells=cells, things=_scatter(cells, scene, rng))


def _lay_patches(cells: np.ndarray, pitch: int, rng: np.random.Generator) -> None:
    for row in range(0, CELLS, pitch):
        for column in range(0, CELLS, pitch):
            if rng.random() < 0.4:
                cells[row + 1 : row + pitch, column + 1 : column + pitch] = PATCH


def _stack_blocks(cells: np.ndarray, rng: np.random.Generator) -> None:
    for _ in range(45):
        row, column = rng.integers(1, CELLS - 3, size=2)
        height, width = rng.integers(1, 4, size=2)
        cells[row : row + height, column : column + width] = rng.choice([BLOCK, TALL_BLOCK])


def _scatter(
    cells: np.ndarray, scene: Scene, rng: np.random.Generator
) -> tuple[tuple[int, int], ...]:
    if not scene.things:
        return ()
    free = np.argwhere(cells == FLOOR)
    chosen = rng.choice(len(free), size=min(THINGS_PER_MAP, len(free)), replace=False)
    return tuple((int(column), int(row)) for row, column in free[np.sort(chosen)])


def wad(maps: Sequence[tuple[Scene, Layout]]) -> bytes:
    """Return a WAD that holds the maps as MAP01, MAP02, ..."""
    info = "".join(_map_info(map_name(i), scene) for i, (scene, _) in enumerate(maps))
    lumps = [("MAPINFO", info.encode()), ("TX_START", b"")]
    lumps += [(name, _png(sky)) for name, sky in _skies().items()]
    lumps += [("TX_END", b"")]
    for index, (scene, layout) in enumerate(maps):
        text = udmf(scene, layout)
        lumps += [(map_name(index), b""), ("TEXTMAP", text.encode())]
        lumps += [("BEHAVIOR", _placing_script()), ("ENDMAP", b"")]
    body, directory = b"", b""
    for name, data in lumps:
        directory += struct.pack("<ii8s", 12 + len(body), len(data), name.encode())
        body += data
    return struct.pack("<4sii", b"PWAD", len(lumps), 12 + len(body)) + body + directory


def _placing_script() -> bytes:
    """Return script `PLACE` in the engine's byte code: place(x, y, angle) moves the player.

    The engine's own commands for that know whole map units only, which the eye sees as jitter. The
    format and the numbers are those of https://zdoom.org/wiki/ACS0 and
    https://zdoom.org/wiki/Category:ACS_p-codes.
    """
    terminate, number, argument, drop, set_angle, set_position = 1, 3, 28, 54, 276, 283
    activator, floor, no_fog = (number, 0), (number, 0), (number, 0)
    code = [
        *activator, argument, 0, argument, 1, *floor, *no_fog, set_position, drop,
        *activator, argument, 2, set_angle, terminate,
    ]  # fmt: skip
    head = 8
    directory = [1, PLACE, head, 3, 0]  # one script: number, address, arguments; no texts
    words = [head + 4 * len(code), *code, *directory]
    return b"ACS\0" + struct.pack(f"<{len(words)}i", *words)


def place_command(x: float, y: float, angle: float) -> str:
    """Return the engine's command that puts the eye at x, y (map units), looking at `angle`."""
    turn = round(angle % 360.0 / 360.0 * 65536) % 65536
    return f"puke {PLACE} {round(x * 65536)} {round(y * 65536)} {turn}"


def map_name(index: int) -> str:
    """Return the engine's name of map number `index`, from 0."""
    return f"MAP{index + 1:02d}"


def _map_info(name: str, scene: Scene) -> str:
    return f'map {name} "{scene.name}" {{ sky1 = "{scene.sky}", 0 }}\n'


def udmf(scene: Scene, layout: Layout) -> str:
    """Return the text of one map."""
    cells = layout.cells
    parts = ['namespace = "zdoom";']
    grid = [(x * CELL, y * CELL) for y in range(CELLS + 1) for x in range(CELLS + 1)]
    parts += [_block("vertex", x=f"{x}.0", y=f"{y}.0") for x, y in grid]
    parts += [_sector(scene, kind) for kind in range(TALL_BLOCK + 1)]
    parts += _lines(scene, cells)
    row, column = np.argwhere(~layout.solid())[0]
    parts.append(_thing(1, column, row))
    for number, (column, row) in enumerate(layout.things):
        parts.append(_thing(scene.things[number % len(scene.things)], column, row))
    return "\n".join(parts)


def _block(what: str, /, *, x: str, y: str, more: str = "") -> str:
    return f"{what} {{ x = {x}; y = {y}; {more}}}"


def _thing(number: int, column: int, row: int) -> str:
    x, y = ((place + 0.5) * CELL for place in (column, row))
    flags = "single = true; skill1 = true; skill2 = true; skill3 = true;"
    return _block("thing", x=f"{x:.1f}", y=f"{y:.1f}", more=f"type = {number}; angle = 0; {flags} ")


def _sector(scene: Scene, kind: int) -> str:
    floor = {PATCH: scene.patch, BLOCK: scene.block_top, TALL_BLOCK: scene.block_top}
    light = min(255, scene.light + 40) if kind == LAMP else scene.light
    return (
        f"sector {{ heightfloor = {BLOCK_HEIGHTS.get(kind, 0)}; heightceiling = {scene.height}; "
        f'texturefloor = "{floor.get(kind) or scene.floor}"; '
        f'textureceiling = "{scene.lamp if kind == LAMP else scene.ceiling}"; '
        f"lightlevel = {light}; }}"
    )


def _lines(scene: Scene, cells: np.ndarray) -> list[str]:
    """Return linedefs and sidedefs: one line per cell edge where two kinds of cell meet."""
    parts: list[str] = []
    sides = 0
    for row, column, back_row, back_column, start, end in _edges():
        front, back = cells[row, column], cells[back_row, back_column]
        if front == back:
            continue
        if front == WALL:  # the front side is the open one
            front, back, start, end = back, front, end, start
        # A texture continues over a whole wall between two pillars.
        stretch = (row // scene.pitch) * 7 + (column // scene.pitch) * 3 + (row == back_row)
        if back == WALL:
            texture = scene.walls[stretch % len(scene.walls)]
            parts.append(f'sidedef {{ sector = {front}; texturemiddle = "{texture}"; }}')
            parts.append(f"linedef {{ v1 = {start}; v2 = {end}; sidefront = {sides}; }}")
            sides += 1
            continue
        texture = scene.blocks[stretch % len(scene.blocks)] if scene.blocks else "-"
        for kind in (front, back):
            parts.append(f'sidedef {{ sector = {kind}; texturebottom = "{texture}"; }}')
        parts.append(
            f"linedef {{ v1 = {start}; v2 = {end}; sidefront = {sides}; "
            f"sideback = {sides + 1}; twosided = true; }}"
        )
        sides += 2
    return parts


def _edges():
    """Yield (row, column, row behind, column behind, v1, v2); the first cell lies to the
    right of the way from v1 to v2, which the engine calls the front."""
    corner = CELLS + 1
    for row in range(CELLS):
        for column in range(CELLS):
            here = row * corner + column
            if column + 1 < CELLS:  # the edge to the east: walked south, the west is on the right
                yield row, column, row, column + 1, here + 1 + corner, here + 1
            if row + 1 < CELLS:  # the edge to the north: walked east, the south is on the right
                yield row, column, row + 1, column, here + corner, here + corner + 1


def _skies() -> dict[str, np.ndarray]:
    """Return our own skies by name, (128, 256, 3) uint8: blue with clouds, and sand-coloured."""
    height = np.linspace(0.0, 1.0, 128)[:, None, None]
    clouds = _clouds()[..., None]
    blue = np.array([70.0, 70.0, 255.0]) * (1 - height) + np.array([190.0, 190.0, 255.0]) * height
    sand = np.array([255.0, 140.0, 60.0]) * (1 - height) + np.array([255.0, 230.0, 180.0]) * height
    return {
        "WALKSKY1": (blue + (255 - blue) * clouds).round().astype(np.uint8),
        "WALKSKY2": (sand + (255 - sand) * 0.5 * clouds).round().astype(np.uint8),
    }


def _clouds() -> np.ndarray:
    """Return (128, 256) in [0, 1], periodic along the width: waves of falling amplitude."""
    rng = np.random.default_rng(0)
    y, x = np.indices((128, 256))
    total = np.zeros((128, 256))
    for octave in range(1, 6):
        for _ in range(4):
            turns, rise, phase = rng.integers(-(2**octave), 2**octave), 2**octave, rng.random()
            total += 2.0**-octave * np.cos(2 * np.pi * (turns * x / 256 + rise * y / 128 + phase))
    return np.clip(0.7 * total, 0, 1)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()
