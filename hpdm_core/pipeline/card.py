"""The model card of an exported model: what it is, what it was trained on, how to use it.

A card states only what the weights file records; anything else is marked as unknown.
"""

from collections.abc import Mapping

from hpdm_core.recipe.schema import Recipe

Score = float | int | str
# Known data sets; all others are described by name only.
KNOWN_DATA = {
    "shapes": "synthetic videos of moving shapes, rendered by `hpdm prep shapes`",
    "vizdoom": "first-person walks through game scenes, rendered by `hpdm prep vizdoom`",
    "ucf101": "UCF-101, videos of 101 human actions collected from the web (`hpdm prep ucf101`)",
}
MOST_CLASSES = 120


def model_card(
    recipe: Recipe,
    *,
    classes: tuple[str, ...],
    step: int,
    parameters: int,
    metadata: Mapping[str, str],
    scores: Mapping[str, Score],
) -> str:
    """Return the card as Markdown with the Hub's YAML header.

    Args:
        recipe: that the model was trained by.
        classes: class names; empty for a model without classes.
        step: optimiser steps it was trained for.
        parameters: number of them.
        metadata: of its weights: `hpdm_version`, and where known `seconds` of training, `machine`
            and `base`, the model that it was fine-tuned from.
        scores: by name.
    """
    levels = recipe.pyramid.levels
    ends = dict.fromkeys((levels[0], levels[-1]))  # one where there is one level
    sizes = " to ".join("x".join(map(str, level)) for level in ends)
    task = "text-to-video" if recipe.model.conditioning == "text" else "other"
    lines = [
        "---",
        "library_name: hpdm",
        f"pipeline_tag: {task}",
        "tags: [hpdm, video-generation, diffusion, pixel-space]",
        "---",
        "",
        f"# {recipe.name}",
        "",
        f"{recipe.description or 'A Hierarchical Patch Diffusion Model.'}",
        "",
        "A Hierarchical Patch Diffusion Model (Skorokhodov et al., CVPR 2024) in the open "
        "implementation hpdm; not by the paper's authors and not their weights.",
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {parameters:,} (EMA weights, float32) |",
        f"| videos | {len(levels)} levels, {sizes} (frames, rows, columns) |",
        f"| frames per second | {recipe.sampling.fps:g} |",
        f"| conditioned on | {_conditioning(recipe, classes)} |",
        f"| backbone | {recipe.model.block} |",
        f"| trained for | {_training(recipe, step, metadata)} |",
        f"| written by | hpdm {metadata.get('hpdm_version', 'of an unknown version')} |",
        "",
        "## Use",
        "",
        "```python",
        "import hpdm_core as hpdm",
        "",
        'pipe = hpdm.Pipeline.from_pretrained(".")  # this folder, or "hf://owner/name"',
        f"videos = pipe({_example(recipe, classes)}seeds=[0, 1])",
        'videos.save("out")',
        "```",
        "",
        *_training_data(recipe, metadata),
        "",
        *_scores(scores),
    ]
    if classes:
        listed = ", ".join(classes[:MOST_CLASSES])
        more = len(classes) - MOST_CLASSES
        lines += ["", "## Classes", "", listed + (f", and {more} more" if more > 0 else "")]
    return "\n".join(lines) + "\n"


def duration(seconds: float) -> str:
    """Format a duration in a suitable unit: 40 seconds, 79 minutes, 3.5 hours."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _training(recipe: Recipe, step: int, metadata: Mapping[str, str]) -> str:
    known = f"{step:,} steps of {recipe.train.batch_size} videos"
    try:
        known += f", {duration(float(metadata['seconds']))}"
    except (KeyError, ValueError):
        known += ", for an unknown time"
    return f"{known} on {metadata.get('machine', 'an unknown machine')}"


def _training_data(recipe: Recipe, metadata: Mapping[str, str]) -> list[str]:
    name = recipe.data.name
    about = KNOWN_DATA.get(name, "a data set of that name, which this card knows nothing else of")
    base = metadata.get("base")
    return [
        "## Training data and limits",
        "",
        f"Trained on the split `{recipe.data.split}` of `{name}`: {about}"
        + (f". It started from the weights of {base}." if base else "."),
        f"It has seen no other data{' after that' if base else ''}, can only show what resembles "
        "it, and repeats its biases. Nothing filters what it generates. Small models and short "
        "trainings give blurred or broken videos: judge by the scores below and by looking. The "
        "licence of the weights depends on the data and is for their owner to say.",
    ]


def _scores(scores: Mapping[str, Score]) -> list[str]:
    if not scores:
        return ["## Scores", "", "None were given. Measure them with `hpdm eval-fvd`."]
    rows = [f"| {name} | {value} |" for name, value in scores.items()]
    return ["## Scores", "", "| measure | value |", "|---|---|", *rows]


def _conditioning(recipe: Recipe, classes: tuple[str, ...]) -> str:
    kind = recipe.model.conditioning
    if kind == "class":
        return f"{len(classes)} classes"
    return "nothing (unconditional)" if kind == "none" else kind


def _example(recipe: Recipe, classes: tuple[str, ...]) -> str:
    kind = recipe.model.conditioning
    if kind == "class" and classes:
        return f'classes=["{classes[0]}"], '
    return 'prompts=["a red fox in the snow"], ' if kind == "text" else ""
