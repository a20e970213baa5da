"""Protocol names: what they mean, round trips, refusals."""

import pytest

from hpdm_core.errors import MetricError
from hpdm_core.metrics.protocols import Protocol, parse_protocol


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fvd10k_16f", Protocol(num_fakes=10_000, frames=16)),
        ("fvd2048_16f", Protocol(num_fakes=2048, frames=16)),
        ("fvd512_16f", Protocol(num_fakes=512, frames=16)),
        ("fvd2048_64f", Protocol(num_fakes=2048, frames=64)),
        ("fvd10k_16f_stride4", Protocol(num_fakes=10_000, frames=16, stride=4)),
        ("fvd512_level1", Protocol(num_fakes=512, frames=None, level=1)),
        ("fvdfull_8f", Protocol(num_fakes=None, frames=8)),
    ],
)
def test_names(name, expected):
    assert parse_protocol(name) == expected
    assert expected.name == name


@pytest.mark.parametrize(
    "name", ["fvd", "fvd10k", "fvd10k_16", "fid10k_16f", "fvd1.5k_16f", "fvd512_level1_16f", ""]
)
def test_unknown_names_are_refused(name):
    with pytest.raises(MetricError, match=r"unknown protocol.*fvd10k_16f"):
        parse_protocol(name)


@pytest.mark.parametrize("name", ["fvd0_16f", "fvd10k_0f", "fvd10k_16f_stride0"])
def test_zeros_are_refused(name):
    with pytest.raises(MetricError, match="compares nothing"):
        parse_protocol(name)
