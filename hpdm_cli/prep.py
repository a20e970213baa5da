"""`hpdm prep`: prepare data sets for training."""

from pathlib import Path
from typing import Annotated

import typer

from hpdm_cli.console import session
from hpdm_cli.options import (
    Device,
    DryRun,
    Json,
    examples,
    height_width,
    same_command,
    words,
)
from hpdm_cli.prep_endings import committed, prepared

app = typer.Typer(
    help="Prepare data sets for training.\n\nWrites canonical videos and a manifest to "
    "DATA/NAME; unusable files are listed with the reason in rejected.jsonl. Run again, finished "
    "videos are skipped.",
    no_args_is_help=True,
)

Root = Annotated[
    Path,
    typer.Argument(metavar="DATA", help="Folder of data sets, such as ./data.", show_default=False),
]
AnyRoot = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Folder of data sets, such as ./data; with --shard also s3://BUCKET/data, gs://, "
        "hf:// (pip install 'hpdm[cluster]').",
        show_default=False,
    ),
]
Name = Annotated[str, typer.Option("--name", help="Name of the data set: the folder below DATA.")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", help="Parallel processes.", show_default="one per core"),
]
MinFrames = Annotated[
    int, typer.Option("--min-frames", help="Videos with fewer frames are rejected.")
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="HxW",
        help="Shrink larger videos to cover this size, 288x512 or 128: training then reads faster.",
        show_default="the original size",
    ),
]

Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Prepare only part I of N, counted from 0, as an independent task of a cluster; "
        "`hpdm prep commit` joins them.",
        show_default=False,
    ),
]


@app.command(
    epilog=examples(
        "hpdm prep shapes ./data",
        "hpdm prep shapes ./data --num 5000 --size 128",
    )
)
def shapes(
    ctx: typer.Context,
    root: Root,
    name: Name = "shapes",
    num: Annotated[int, typer.Option("--num", help="Number of videos.")] = 2000,
    size: Annotated[int, typer.Option("--size", help="Height and width in pixels.")] = 64,
    frames: Annotated[int, typer.Option("--frames", help="Frames per video.")] = 16,
    seed: Annotated[int, typer.Option("--seed", help="Random seed.")] = 0,
    workers: Workers = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Generate the built-in data set of moving shapes.

    Classes are shape and motion; every video has a caption.
    """
    with session(as_json=json) as current:
        from hpdm_core.runs.prep import run_prep_shapes

        result = run_prep_shapes(
            root, name=name, num=num, size=size, frames=frames, seed=seed, workers=workers,
            dry_run=dry_run, progress=current.progress,
        )  # fmt: skip
        shown = prepared(result, root=root, kind="shapes", command=same_command(ctx))
        current.show(result, shown)


@app.command(
    epilog=examples(
        "hpdm prep vizdoom ./data",
        "hpdm prep vizdoom ./data --num 5000 --size 256 --frames 64",
        "hpdm prep vizdoom ./data --scenes brick-maze,rock-cave --name two",
    )
)
def vizdoom(
    ctx: typer.Context,
    root: Root,
    name: Name = "vizdoom",
    num: Annotated[int, typer.Option("--num", help="Number of videos.")] = 2400,
    size: Annotated[int, typer.Option("--size", help="Height and width in pixels.")] = 64,
    frames: Annotated[int, typer.Option("--frames", help="Frames per video.")] = 32,
    scenes: Annotated[
        str,
        typer.Option(
            "--scenes",
            metavar="NAME,NAME,...",
            help="Scenes to walk through; each is a class.",
            show_default="all twelve",
        ),
    ] = "",
    seed: Annotated[int, typer.Option("--seed", help="Random seed.")] = 0,
    workers: Workers = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Render first-person walks.

    The scenes are the classes, and each video has a caption. Needs the package vizdoom:
    pip install 'hpdm[vizdoom]'
    """
    with session(as_json=json) as current:
        from hpdm_core.runs.prep import run_prep_vizdoom

        result = run_prep_vizdoom(
            root, name=name, num=num, size=size, frames=frames, scenes=words(scenes), seed=seed,
            workers=workers, dry_run=dry_run, progress=current.progress,
        )  # fmt: skip
        shown = prepared(result, root=root, kind="vizdoom", command=same_command(ctx))
        current.show(result, shown)


@app.command(
    epilog=examples(
        "hpdm prep ucf101 ./data",
        "hpdm prep ucf101 ./data --source ~/UCF-101",
        "hpdm prep ucf101 ./data --source UCF101.rar",
    )
)
def ucf101(
    ctx: typer.Context,
    root: Root,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            help="Extracted folder, .zip, .rar or .tar archive, or URL; default: download it.",
            show_default=False,
        ),
    ] = None,
    name: Name = "ucf101",
    fold: Annotated[int, typer.Option("--fold", help="Official split, 1 to 3.")] = 1,
    min_frames: MinFrames = 16,
    size: Size = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Download UCF-101, or use your copy.

    The manifest has its classes and official splits.
    """
    with session(as_json=json) as current:
        shrunk = height_width(size, option="--size")
        from hpdm_core.runs.prep import run_prep_ucf101

        result = run_prep_ucf101(
            root, source=source, name=name, fold=fold, min_frames=min_frames, size=shrunk,
            workers=workers, dry_run=dry_run, progress=current.progress,
        )  # fmt: skip
        shown = prepared(result, root=root, kind="ucf101", command=same_command(ctx))
        current.show(result, shown)


@app.command(
    epilog=examples(
        "hpdm prep folder ./data --source ~/Videos --name mine",
        "hpdm prep folder ./data --source ~/Videos --name mine --shard 0/8",
    )
)
def folder(
    ctx: typer.Context,
    root: AnyRoot,
    source: Annotated[
        str,
        typer.Option("--source", help="Folder or URL of videos, at any depth.", show_default=False),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the data set.", show_default="the source folder's"),
    ] = None,
    min_frames: MinFrames = 16,
    size: Size = None,
    workers: Workers = None,
    shard: Shard = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Prepare any folder of videos.

    Its sub-folders are the classes.
    """
    with session(as_json=json) as current:
        shrunk = height_width(size, option="--size")
        from hpdm_core.runs.prep import run_prep_folder

        result = run_prep_folder(
            root, source=source, name=name, min_frames=min_frames, size=shrunk, workers=workers,
            shard=shard, dry_run=dry_run, progress=current.progress,
        )  # fmt: skip
        shown = prepared(result, root=root, kind="folder", command=same_command(ctx))
        current.show(result, shown)


@app.command(
    epilog=examples(
        "hpdm prep captions ./data --source captions.jsonl --text-encoder t5-small",
        "hpdm prep captions ./data --source captions.csv --text-encoder ./my-t5",
    )
)
def captions(
    ctx: typer.Context,
    root: AnyRoot,
    source: Annotated[
        str,
        typer.Option(
            "--source",
            help="JSON lines or CSV, here or at a URL, with a file (relative to it, or a URL) and "
            "a caption per line.",
            show_default=False,
        ),
    ],
    text_encoder: Annotated[
        str | None,
        typer.Option(
            "--text-encoder",
            metavar="NAME or PATH",
            help="Text encoder that transformers can load; default: captions without embeddings.",
            show_default=False,
        ),
    ] = None,
    name: Name = "captions",
    min_frames: MinFrames = 16,
    size: Size = None,
    workers: Workers = None,
    device: Device = "auto",
    shard: Shard = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Prepare videos and images with captions.

    Text embeddings are computed once and stored.
    """
    with session(as_json=json) as current:
        shrunk = height_width(size, option="--size")
        from hpdm_core.runs.prep import run_prep_captions

        result = run_prep_captions(
            root, source=source, name=name, text_encoder=text_encoder, min_frames=min_frames,
            size=shrunk, workers=workers, device=device, shard=shard, dry_run=dry_run,
            progress=current.progress,
        )  # fmt: skip
        shown = prepared(result, root=root, kind="captions", command=same_command(ctx))
        current.show(result, shown)


@app.command(
    epilog=examples(
        "hpdm prep commit ./data/mine",
    )
)
def commit(
    dest: Annotated[
        str,
        typer.Argument(
            metavar="DEST",
            help="The data set, DATA/NAME or its URL; DATA if it holds one such data set.",
            show_default=False,
        ),
    ],
    json: Json = False,
) -> None:
    """Join the parts that `--shard I/N` prepared.

    Names parts that are missing. The data set appears when it is complete.
    """
    with session(as_json=json) as current:
        from hpdm_core.runs.prep import run_prep_commit

        result = run_prep_commit(dest)
        current.show(result, committed(result))
