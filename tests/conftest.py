"""What every test shares: one thread, the `gpu` marker, and real videos where they can be had."""

import os
from pathlib import Path

# Before torch is imported: sums are added up in the same order on every machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; none is here"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real test videos: $HPDM_TEST_DATA, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("HPDM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs real videos; {folder} is absent and HPDM_TEST_DATA does not name any")
    return folder
