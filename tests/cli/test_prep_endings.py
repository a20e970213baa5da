"""`hpdm prep` ends with the command that trains on what it prepared."""

import pytest

from hpdm_cli.prep_endings import prepared


def _next(name: str, sizes: dict[str, int], kind: str = "vizdoom") -> str:
    result = {
        "name": name, "folder": f"data/{name}", "usable": "2 of 2 videos usable", "bytes": 1000,
        "frames": {"min": 32, "median": 32, "max": 32}, "sizes": sizes, "classes": 12,
        "splits": {"train": 2}, "notes": [],
    }  # fmt: skip
    return dict(prepared(result, root="data", kind=kind, command="").lines)["next"]


@pytest.mark.parametrize(
    ("name", "size", "command"),
    [
        ("vizdoom", "64x64", "hpdm train walks"),
        ("walks128", "128x128", "hpdm train walks128"),
        ("walks256", "256x256", "hpdm train hpdm_s_walks"),
        ("mine", "128x128", "hpdm train walks128 data.name=mine"),
    ],
)
def test_walks_are_trained_by_the_recipe_of_their_size(name, size, command):
    assert _next(name, {size: 2}) == command


def test_other_videos_of_that_size_are_not_walks():
    assert _next("clips", {"128x128": 2}, kind="folder") == "hpdm train small"
