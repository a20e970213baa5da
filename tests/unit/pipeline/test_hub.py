"""`hf://owner/name` against a stand-in Hub on the loopback address."""

import json
import time

import numpy as np
import pytest
from huggingface_hub import constants

import hpdm_core as hpdm
from hpdm_core.errors import CheckpointError, HpdmError
from hpdm_core.pipeline.hub import download_weights
from hpdm_core.progress import NoProgress
from hpdm_core.recipe.load import recipe_from_yaml
from hpdm_core.runs.sample.options import SampleOptions
from hpdm_core.runs.sample.run import run_sample
from hpdm_core.runs.train.warm_start import plan_warm_start
from tests.unit.runs.conftest import RECIPE

NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens


def test_pushed_and_read_again_it_makes_the_same_videos(pipe, hub):
    assert pipe.push_to_hub("me/tiny", scores={"FVD": 1.5}).endswith("/me/tiny")
    assert set(hub.repos["me/tiny"]) == {"ema.safetensors", "recipe.yaml", "README.md"}
    assert b"| FVD | 1.5 |" in hub.repos["me/tiny"]["README.md"]
    again = hpdm.Pipeline.from_pretrained("hf://me/tiny", device="cpu")
    one, other = (p(seeds=[4], classes=2, progress=NoProgress()).frames for p in (pipe, again))
    assert np.array_equal(one, other)


def test_every_command_takes_such_a_name(make_weights, hub, tmp_path):
    hub.repos["me/tiny"] = {"ema.safetensors": make_weights().read_bytes()}
    out = tmp_path / "out"
    made = run_sample(
        SampleOptions(checkpoint="hf://me/tiny@v1", num=1, steps=(1, 1), out=out, device="cpu")
    )
    assert json.loads((out / "samples.jsonl").read_text())["class"] == "circle"
    assert made["made"] == 1
    start = plan_warm_start("hf://me/tiny", recipe_from_yaml(RECIPE, "new"), classes=None)
    assert start.level_0_as_base


def test_safetensors_of_another_name_alone_are_fetched(hub):
    files = {"model.bin": b"pickle", "weights.safetensors": b"abc", "README.md": b""}
    hub.repos["me/other"] = files
    assert download_weights("hf://me/other").read_bytes() == b"abc"
    assert not any("model.bin" in request for request in hub.requests)
    hub.repos["me/pickle"] = {"model.bin": b"pickle"}
    with pytest.raises(CheckpointError, match=r"holds no model of hpdm; got model\.bin; expected"):
        download_weights("hf://me/pickle")
    with pytest.raises(CheckpointError, match="cannot read weights"):
        hpdm.Pipeline.from_pretrained("hf://me/other", device="cpu")


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("hf://me/absent", "no model hf://me/absent; got RepositoryNotFound.*hf auth login"),
        ("hf://me/tiny@v2", "no model hf://me/tiny@v2; got RevisionNotFound"),
        ("hf://me", "not the name of a model on the Hub; got hf://me; expected hf://owner/name"),
        ("hf://me/../x", "not the name of a model on the Hub"),
    ],
)
def test_what_is_not_there(hub, ref, message):
    hub.repos["me/tiny"] = {"ema.safetensors": b"abc"}
    with pytest.raises(CheckpointError, match=message):
        download_weights(ref)


def test_offline_the_cache_serves_and_the_rest_is_refused(hub, monkeypatch, pipe):
    hub.repos["me/tiny"] = {"ema.safetensors": b"abc"}
    path = download_weights("hf://me/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download_weights("hf://me/tiny") == path
    with pytest.raises(CheckpointError, match=r"cannot download hf://me/new.*connection to http"):
        download_weights("hf://me/new")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's attempts
    with pytest.raises(CheckpointError, match=r"cannot download hf://me/new.*connection to http"):
        download_weights("hf://me/new")
    with pytest.raises(HpdmError, match=r"cannot upload to me/new.*hf auth login"):
        pipe.push_to_hub("me/new")
