"""The loss of every level over the steps of a run, as a picture."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpdm_core.files import atomic_path, read_whole_lines
from hpdm_core.training.telemetry import METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger("hpdm.runs")

PICTURE = "loss.png"


def plot_losses(run: Path) -> None:
    """Draw `loss.png` from a run's metrics.jsonl; a failure is logged and stops nothing."""
    lines = [line for line in read_whole_lines(run / METRICS) if "loss_0" in line]
    if not lines:
        return
    figure = losses_figure(lines, title=f"{run.resolve().name}: loss by level")
    try:
        with atomic_path(run / PICTURE) as partial:
            figure.savefig(partial, dpi=120)
    except OSError as error:
        logger.warning("the plot of the losses could not be written: %s", error)


def losses_figure(lines: Sequence[dict], *, title: str) -> "Figure":
    """Draw the losses of lines of metrics; the axis is logarithmic where they fell far."""
    # Imported here: it takes half a second. Without pyplot no display is needed.
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss", title=title)
    names = sorted({name for line in lines for name in line if name.startswith("loss_")})
    for name in names:
        points = [(line["step"], line[name]) for line in lines if line.get(name, 0) > 0]
        mark = "o" if len(points) < 20 else ""
        axes.plot(*zip(*points, strict=True), label=f"level {name[5:]}", marker=mark)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    low, high = axes.get_ylim()
    if low < high / 4:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # 0.05, not a power of ten
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.legend(title="level 0 is the coarsest")
    return figure
