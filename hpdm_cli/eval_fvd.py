"""`hpdm eval-fvd`: score videos against real ones."""

from pathlib import Path
from typing import Annotated

import typer

from hpdm_cli.console import session
from hpdm_cli.options import Device, DryRun, Json, Out, examples, same_command, words
from hpdm_cli.score_endings import scored, scores_listed

NAME = "eval-fvd"
EXAMPLES = examples(
    "hpdm eval-fvd --list",
    "hpdm eval-fvd --checkpoint runs/hpdm_s --protocol fvd10k_16f",
    "hpdm eval-fvd --samples my/videos --real data/mine --protocol fvdfull_16f",
    "hpdm eval-fvd --checkpoint shipped --protocol fvd512_16f --detector bundled",
)


def command(
    ctx: typer.Context,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            metavar="CHECKPOINT",
            help="Generate the videos with this run folder, checkpoint folder, weights file, "
            "hf://owner/name or the name of a model in the package.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            "--samples",
            metavar="DIR",
            help="Score these videos: a folder of videos, or one written by hpdm sample.",
            show_default=False,
        ),
    ] = None,
    real: Annotated[
        str | None,
        typer.Option(
            "--real",
            metavar="DATA",
            help="Real videos: a data set of hpdm prep, or a folder of videos.",
            show_default="the checkpoint's training data",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help="Named protocol, such as fvd10k_16f, fvd2048_16f, fvd512_16f or fvd2048_64f.",
            show_default=False,
        ),
    ] = None,
    metrics: Annotated[
        str, typer.Option("--metrics", metavar="LIST", help="Any of fvd, kvd, is, prdc, quality.")
    ] = "fvd",
    detector: Annotated[
        str,
        typer.Option(
            "--detector",
            metavar="NAME or FILE",
            help="i3d, bundled, efficientnet-lite0, transnetv2, videomae, vjepa2, or a file of "
            "I3D weights; only i3d gives FVD.",
        ),
    ] = "i3d",
    num_fakes: Annotated[
        int | None,
        typer.Option(
            "--num-fakes", help="Number of generated videos.", show_default="the protocol's"
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split", help="Split of the real data set.", show_default="the protocol's: train"
        ),
    ] = None,
    preparation: Annotated[
        str,
        typer.Option(
            "--preparation",
            help="How clips are cut from files: hpdm, or stylegan-v (resized by Lanczos before "
            "the crop; last start stride - 1 later).",
        ),
    ] = "hpdm",
    out: Out = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", help="Videos per batch.", show_default="from free memory"),
    ] = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the generated videos.")] = 0,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also score fewer than 256 videos; their bias is estimated."),
    ] = False,
    listing: Annotated[
        bool,
        typer.Option("--list", help="List metrics, protocols and detectors, and what is here."),
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Score generated videos against real ones.

    Takes --checkpoint or --samples, prints each figure with its protocol, and writes it with all
    that it depends on to evals/, or to --out.
    Features are cached: a second protocol takes seconds.
    """
    with session(as_json=json) as current:
        if listing:
            from hpdm_core.runs.evaluate.listing import list_scores

            found = list_scores()
            current.show(found, scores_listed(found))
            return
        from hpdm_core.runs.evaluate.run import run_eval_fvd

        result = run_eval_fvd(
            checkpoint=checkpoint, samples=samples, real=real, protocol=protocol,
            metrics=words(metrics), detector=detector, num_fakes=num_fakes, split=split,
            preparation=preparation, out=out, batch=batch, device=device, seed=seed,
            force=force, dry_run=dry_run, progress=current.progress,
        )  # fmt: skip
        current.show(result, scored(result, command=same_command(ctx)))
