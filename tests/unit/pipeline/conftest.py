"""The smallest model as a pipeline, and a stand-in for the Hub."""

import pytest

from hpdm_core.pipeline.pipeline import Pipeline
from tests import hub_server
from tests.unit.runs.conftest import make_weights  # noqa: F401, a fixture


@pytest.fixture
def pipe(make_weights):  # noqa: F811
    return Pipeline.from_pretrained(make_weights(), device="cpu")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_server.serve(tmp_path, monkeypatch) as state:
        yield state
