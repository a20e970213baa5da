"""Cost of opening a large data set: `python benchmarks/dataset_scale.py --json [--entries N]`.

Writes a made-up manifest of N entries and, in a fresh process, opens it as training does (a split,
videos long enough) and draws the order of an epoch. `open_seconds` and the microseconds are
processor time, since the machine may have other load. Memory is what the process alone holds;
mapped pages of the file are shared by all processes of a machine and are given beside it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from hpdm_core.data import order
from hpdm_core.data.dataset import open_dataset, write_header
from hpdm_core.data.manifest import MANIFEST, ROWS_PER_BATCH, SCHEMA

MIN_FRAMES, FRAMES, SHORT = 16, 64, 8
DRAWS, LOOKUPS = 20_000, 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "large"
        folder.mkdir()
        write(folder, options.entries)
        command = [sys.executable, __file__, "--measure", str(folder)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        found["file_mb"] = round((folder / MANIFEST).stat().st_size / 1e6, 1)
    if options.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name:18} {value:,}" for name, value in found.items()))


def write(folder: Path, entries: int) -> None:
    """Write a manifest of made-up videos with captions; every tenth is too short."""
    write_header(folder, {"kind": "captions", "classes": []})
    with (
        pa.OSFile(str(folder / MANIFEST), "wb") as file,
        pa.ipc.new_file(file, SCHEMA) as writer,
    ):
        for first in range(0, entries, ROWS_PER_BATCH):
            numbers = range(first, min(first + ROWS_PER_BATCH, entries))
            writer.write_batch(_rows(numbers))


def _rows(numbers: range) -> pa.RecordBatch:
    names = pa.array(numbers).cast(pa.string())
    frames = [SHORT if number % 10 == 0 else FRAMES for number in numbers]
    same = {
        "fps": 25.0, "height": 288, "width": 512, "label": -1, "more_captions": [],
        "split": "train", "is_image": False, "source_bytes": 10**6,
        "source_mtime_ns": 0, "source_sha256": "0" * 64,
    }  # fmt: skip
    columns = {
        "path": pc.binary_join_element_wise("videos/", names, ".mp4", ""),
        "num_frames": pa.array(frames, pa.int32()),
        "caption": pc.binary_join_element_wise("a made-up caption of video", names, " ").cast(
            pa.large_string()
        ),
        "source": names,
    }
    arrays = [
        columns[field.name] if field.name in columns else _repeated(field, same, len(numbers))
        for field in SCHEMA
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _repeated(field: pa.Field, values: dict, count: int) -> pa.Array:
    return pa.array([values[field.name]] * count, field.type)


def measure(folder: Path) -> dict[str, float]:
    """Return the cost of opening a data set and of an epoch's order, in this process."""
    own, shared = memory()
    begun, wall = time.process_time(), time.perf_counter()
    entries = open_dataset(folder.parent, folder.name).split("train", min_frames=MIN_FRAMES)
    opened, wall = time.process_time() - begun, time.perf_counter() - wall
    own_opened, shared_opened = memory()
    begun = time.process_time()
    for place in range(DRAWS):
        order.video_at(place, seed=0, epoch=1, count=len(entries))
    drawn = time.process_time() - begun
    own_ordered, _ = memory()
    begun = time.process_time()
    for place in range(LOOKUPS):
        entries[order.video_at(place, seed=0, epoch=1, count=len(entries))]
    looked_up = time.process_time() - begun
    own_read, _ = memory()
    return {
        "entries": len(open_dataset(folder.parent, folder.name).entries),
        "open_seconds": round(opened, 3),
        "resident_mb": round(own_opened - own, 2),
        "order_mb": round(own_ordered - own_opened, 2),
        "open_wall_seconds": round(wall, 3),
        "lookups_mb": round(own_read - own_ordered, 2),
        "shared_mb": round(shared_opened - shared, 1),
        "order_us": round(1e6 * drawn / DRAWS, 1),
        "lookup_us": round(1e6 * looked_up / LOOKUPS, 1),
    }


def memory() -> tuple[float, float]:
    """Return this process's own resident memory and its mapped files, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return int(sizes["RssAnon"]) / 1e3, int(sizes["RssFile"]) / 1e3


if __name__ == "__main__":
    main()
