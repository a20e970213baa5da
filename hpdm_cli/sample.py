"""`hpdm sample`: generate videos."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hpdm_cli.console import session
from hpdm_cli.endings import models, sampled, sampling_plan
from hpdm_cli.options import (
    Device,
    DryRun,
    Json,
    Out,
    Overrides,
    examples,
    fractions,
    read_recipe,
    same_command,
    whole_numbers,
    words,
)
from hpdm_cli.tables import command_line
from hpdm_core.errors import HpdmError

if TYPE_CHECKING:
    from hpdm_core.recipe.schema import Recipe

NAME = "sample"
EXAMPLES = examples(
    "hpdm sample --list",
    "hpdm sample --overlap fhw --num 9",
    "hpdm sample --preset fast",
    "hpdm sample --checkpoint runs/hpdm_s --class Archery --class 17",
    "hpdm sample --num 4 --format mp4,gif",
    'hpdm sample --checkpoint runs/hpdm_t2v --prompt "a red fox in the snow"',
    "hpdm sample --checkpoint runs/hpdm_t2v --prompt-file texts.txt --guidance 4",
    "hpdm sample --checkpoint hf://owner/name --num 4 --format webp",
    "hpdm sample --input small.mp4 --upscale",
    "hpdm sample --input clip.mp4 --mask 16,16,32,32 --num 3",
    "hpdm sample --recipe hpdm_s --overlap fhw --dry-run",
)


def command(
    ctx: typer.Context,
    overrides: Overrides = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            metavar="CHECKPOINT",
            help="Run folder, checkpoint folder, weights file, hf://owner/name on the Hugging "
            "Face Hub, or the name of a model in the package ('shipped': the best of them).",
            show_default="the newest run under runs/, else shipped",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            help="With --dry-run, in place of a checkpoint: plan for an untrained recipe.",
            show_default=False,
        ),
    ] = None,
    num: Annotated[
        int | None,
        typer.Option(
            "--num",
            help="Number of videos.",
            show_default="one per requested class or prompt, else 8",
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="NAME or INDEX",
            help="Class to generate; repeatable. Default: all in turn.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            metavar="TEXT",
            help="Text prompt; repeatable.",
            show_default=False,
        ),
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            "--prompt-file",
            help="Text file with one prompt per line.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option("--seed", help="Seed of the first video; the next has N + 1."),
    ] = 0,
    overlap: Annotated[
        str | None,
        typer.Option(
            "--overlap",
            metavar="AXES",
            help="Axes along which tiles overlap by half: none, f, h, w, fh, fw, hw or fhw.",
            show_default="the recipe's",
        ),
    ] = None,
    preset: Annotated[
        Literal["paper", "fast"] | None,
        typer.Option(
            "--preset",
            help="Schedule: the paper's steps, or one of fewer block passes; --dry-run shows "
            "what both cost.",
            show_default="the recipe's own",
        ),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            "--steps",
            metavar="N,N,...",
            help="Solver steps per level, coarsest first: 128,64,32.",
            show_default="the recipe's",
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            help="Classifier-free guidance scale; 1 disables it.",
            show_default="the recipe's",
        ),
    ] = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(
            "--text-encoder",
            metavar="NAME or PATH",
            help="Text encoder for prompts.",
            show_default="the training data's",
        ),
    ] = None,
    compare_overlaps: Annotated[
        str | None,
        typer.Option(
            "--compare-overlaps",
            metavar="AXES,AXES,...",
            help="Compare these overlaps side by side, at the same seeds: none,hw,fhw.",
            show_default=False,
        ),
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="VIDEO",
            help="A video to start from, with one of the options below.",
            show_default=False,
        ),
    ] = None,
    upscale: Annotated[
        bool,
        typer.Option(
            "--upscale",
            help="Use --input as the finished lower levels, and generate the finer ones.",
        ),
    ] = False,
    consistent: Annotated[
        bool,
        typer.Option(
            "--consistent/--no-consistent",
            help="With --upscale: the result, downsampled again, equals --input.",
        ),
    ] = True,
    strength: Annotated[
        str | None,
        typer.Option(
            "--strength",
            metavar="S or S,S,...",
            help="Edit --input: fraction of each "
            "level's schedule that is sampled; 0 keeps the video, 1 ignores it.",
            show_default=False,
        ),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            "--mask",
            metavar="MASK",
            help="Inpaint --input: image or video, white where "
            "pixels are generated, or a box x,y,w,h.",
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[
        str | None,
        typer.Option(
            "--repeats",
            metavar="N or N,N,...",
            help="With --mask: how often each step is repeated, with noise in between (RePaint).",
            show_default="1",
        ),
    ] = None,
    first_frames: Annotated[
        int | None,
        typer.Option(
            "--first-frames",
            help="Keep this many frames of --input, and generate what follows.",
            show_default=False,
        ),
    ] = None,
    extend: Annotated[
        int | None,
        typer.Option(
            "--extend",
            help="Continue --input by this many frames, also beyond the model's length.",
            show_default=False,
        ),
    ] = None,
    context_noise: Annotated[
        float | None,
        typer.Option(
            "--context-noise",
            help="With --input: noise level at which finer levels see finished ones.",
            show_default="the recipe's",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="T,H,W",
            help="Frames, height and width of a canvas larger than the model's videos.",
            show_default="the model's",
        ),
    ] = None,
    out: Out = None,
    formats: Annotated[
        str, typer.Option("--format", metavar="LIST", help="Any of mp4, gif, webp, png.")
    ] = "mp4",
    save_levels: Annotated[
        bool, typer.Option("--save-levels", help="Also write the video of every level.")
    ] = False,
    cache: Annotated[
        Literal["auto", "gpu", "cpu", "off"],
        typer.Option(
            "--cache",
            help="Where to keep the activation cache (exact; results do not change).",
        ),
    ] = "auto",
    cache_gb: Annotated[
        float | None,
        typer.Option(
            "--cache-gb",
            help="Maximum size of the activation cache in GB.",
            show_default="from free memory",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            help="Videos per batch.",
            show_default="from free memory",
        ),
    ] = None,
    tile_batch: Annotated[
        int | None,
        typer.Option(
            "--tile-batch",
            help="Tiles per forward pass.",
            show_default="from free memory",
        ),
    ] = None,
    shard: Annotated[
        Literal["videos", "tiles"],
        typer.Option(
            "--shard",
            help="Under torchrun: split the videos, or the tiles of each video, over processes.",
        ),
    ] = "videos",
    device: Device = "auto",
    listing: Annotated[
        bool, typer.Option("--list", help="List the checkpoints here: shipped models and runs.")
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Generate videos from a checkpoint.

    Writes a file per video, a contact sheet, and samples.jsonl with every setting, to
    samples/NAME_OVERLAP, after the model's name, unless --out is given.
    Run again, the same command generates only the missing videos.
    """
    with session(as_json=json) as current:
        if listing:
            from hpdm_core.runs.sample.listing import list_models

            found = list_models()
            current.show(found, models(found))
            return
        plan = _planned_recipe(recipe, overrides)
        solver_steps = whole_numbers(steps, option="--steps")
        from hpdm_core.runs.sample.given import GivenOptions
        from hpdm_core.runs.sample.options import SampleOptions
        from hpdm_core.runs.sample.run import run_sample

        given = GivenOptions(
            input=video, upscale=upscale, consistent=consistent,
            strength=fractions(strength, option="--strength"),
            mask=mask, repeats=whole_numbers(repeats, option="--repeats"),
            first_frames=first_frames, extend=extend,
            context_noise=context_noise,
        )  # fmt: skip
        options = SampleOptions(
            checkpoint=checkpoint, recipe=plan, num=num, classes=tuple(classes or ()),
            prompts=tuple(prompts or ()), prompt_file=prompt_file, text_encoder=text_encoder,
            seed=seed, overlap=overlap, preset=preset, steps=solver_steps, guidance=guidance,
            compare_overlaps=tuple(words(compare_overlaps)), given=given, out=out,
            size=whole_numbers(size, option="--size"),
            formats=tuple(words(formats)), save_levels=save_levels, cache=cache,
            cache_gb=cache_gb, batch=batch, tile_batch=tile_batch, shard=shard, device=device,
            dry_run=dry_run,
        )  # fmt: skip
        result = run_sample(options, progress=current.progress)
        if dry_run:
            train = command_line("hpdm", "train", recipe, *(overrides or ()))
            following = train if recipe else same_command(ctx)
            current.show(result, sampling_plan(result, command=following))
        else:
            current.show(result, sampled(result))


def _planned_recipe(recipe: str | None, overrides: list[str] | None) -> "Recipe | None":
    if recipe is not None:
        return read_recipe(recipe, overrides)
    if overrides:
        raise HpdmError(
            f"'{overrides[0]}' changes a recipe, but no recipe is given",
            remedy="use --recipe RECIPE with --dry-run; a checkpoint carries its own recipe, "
            "and sampling has options such as --steps",
        )
    return None
