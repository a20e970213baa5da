"""The plot of the losses: axes that can be read, however long the run."""

import pytest

from hpdm_core.runs.train.loss_plot import losses_figure


def labels(axis) -> list[str]:
    """Return the labels that are seen."""
    low, high = axis.get_view_interval()
    ticks = axis.get_majorticklocs()
    shown = axis.get_major_formatter().format_ticks(ticks)
    shown += axis.get_minor_formatter().format_ticks(axis.get_minorticklocs())
    return [text for text, tick in zip(shown, ticks, strict=False) if text and low <= tick <= high]


@pytest.mark.parametrize(("steps", "scale"), [(1, "linear"), (4, "linear"), (90, "log")])
def test_axes_have_plain_numbers_and_whole_steps(steps, scale):
    lines = [{"step": 50 * k, "loss_0": 2 / k, "loss_1": 1.8 / k} for k in range(1, steps + 1)]
    if steps < 90:  # losses that fell little
        lines = [line | {"loss_0": 3 - line["step"] / 1e3} for line in lines]
        lines = [line | {"loss_1": line["loss_0"] - 0.1} for line in lines]
    (axes,) = losses_figure(lines, title="run").axes
    axes.figure.draw_without_rendering()
    assert axes.get_yscale() == scale
    assert all(float(text) > 0 for text in labels(axes.yaxis))
    assert len(labels(axes.yaxis)) >= 3
    assert labels(axes.xaxis)
    assert all(text.lstrip("\N{MINUS SIGN}").isdigit() for text in labels(axes.xaxis))
