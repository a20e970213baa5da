"""Benchmark `train_detector.py`: an interrupted training ends as one that was not."""

import pytest
import torch
import train_detector
from train_detector import Example, train


def test_an_interrupted_training_goes_on(tmp_path, monkeypatch):
    rng = torch.Generator().manual_seed(0)
    videos = torch.rand(4, 3, 16, 64, 64, generator=rng) * 2 - 1
    interrupted = True

    def draw(_, seed: int) -> list[Example]:
        place = seed - train_detector.TRAIN_SEEDS
        if interrupted and place == 4:
            raise KeyboardInterrupt
        return [
            Example(video=videos[place % 4], label=place % 3, named=True, strengths=torch.zeros(7))
        ]

    monkeypatch.setattr(train_detector, "_draw", draw)
    monkeypatch.setattr(train_detector, "REPORT_EVERY", 1)
    settings = {"walks": None, "steps": 3, "batch_size": 2}
    with pytest.raises(KeyboardInterrupt):
        train(**settings, state=tmp_path / "early.pt")
    interrupted = False
    resumed = train(**settings, state=tmp_path / "early.pt").state_dict()
    for name, expected in train(**settings).state_dict().items():
        torch.testing.assert_close(resumed[name], expected, rtol=0, atol=0, msg=name)
