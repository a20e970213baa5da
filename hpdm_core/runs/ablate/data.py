"""Data of a table's rows: generated if the scale defines it, else expected on disk."""

from collections.abc import Sequence
from pathlib import Path

from hpdm_core.data.dataset import VideoDataset, open_dataset
from hpdm_core.data.entries import write_json_lines
from hpdm_core.data.tiny_text_encoder import make_tiny_encoder
from hpdm_core.errors import DataError
from hpdm_core.progress import Progress, process_rank
from hpdm_core.reports.ablations import Scale
from hpdm_core.runs.ablate.trials import Trial
from hpdm_core.runs.prep import run_prep_captions, run_prep_shapes

CAPTIONS = "captions.jsonl"


def prepare(scale: Scale, trials: Sequence[Trial], *, progress: Progress) -> None:
    """Generate a scale's own data, and check that other data exists.

    Raises:
        DataError: a data set must be prepared first.
    """
    for real in sorted({trial.real for trial in trials if trial.folder is not None}):
        if scale.shapes is None:
            open_dataset(real.parent, real.name)
        elif process_rank() == 0 and not _is_there(real):
            run_prep_shapes(
                real.parent,
                progress=progress,
                name=real.name,
                num=scale.shapes.num,
                size=scale.shapes.size,
                frames=scale.shapes.frames,
            )
    if scale.captions_of is None or process_rank() != 0:
        return
    for trial in trials:
        data, width = trial.recipe.data, trial.recipe.model.condition_width
        if not _is_there(Path(data.root) / data.name):
            real = open_dataset(trial.real.parent, trial.real.name)
            _prepare_captions(real, data.name, width=width, progress=progress)


def _prepare_captions(real: VideoDataset, name: str, *, width: int, progress: Progress) -> None:
    """Prepare the same videos with captions in place of classes, and a tiny encoder for them."""
    source = real.folder / CAPTIONS
    entries = real.split("train")
    write_json_lines(source, [{"file": e.path, "caption": e.caption} for e in entries])
    encoder = real.folder.parent / f"{name}_encoder"
    make_tiny_encoder(encoder, [entry.caption for entry in entries], width=width)
    run_prep_captions(
        real.folder.parent, source=source, progress=progress, name=name, text_encoder=str(encoder)
    )


def _is_there(folder: Path) -> bool:
    try:
        open_dataset(folder.parent, folder.name)
    except DataError:
        return False
    return True
