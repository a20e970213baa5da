"""Every field of a recipe, typed and described. Sizes live in recipes only, so few have defaults.

Axis legend: `t h w` frames, rows, columns. Level 0 is the coarsest.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from hpdm_core.geometry.pyramid import AXES, Pyramid, pyramid_problems
from hpdm_core.names import plain_name
from hpdm_core.recipe.bounds import size_problems

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Size = tuple[Positive, Positive, Positive]
Name = Annotated[str, AfterValidator(plain_name)]


class Section(BaseModel):
    """A part of a recipe: frozen, and strict about names and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataRecipe(Section):
    """Which videos, and how clips are cut from them."""

    root: str = Field("./data", description="folder that `hpdm prep` wrote to")
    name: Name = Field(description="data set's name below the root")
    split: str = Field("train", description="which split of the manifest to train on")
    frame_stride: Positive = Field(1, description="take every n-th frame of the source")
    short_clips: Literal["drop", "loop", "hold"] = Field(
        "drop", description="videos with too few frames: leave out, repeat, or hold the last frame"
    )
    flip: bool = Field(False, description="mirror half of the clips left to right")
    image_share: Share = Field(
        0.0, description="share of samples that are a still, repeated in time"
    )
    workers: Annotated[int, Field(ge=0)] = Field(2, description="decoding processes per device")
    memory_cache_gb: Annotated[float, Field(ge=0)] = Field(
        0.0, description="keep decoded videos in memory up to this size (small data sets)"
    )


class PyramidRecipe(Section):
    """The levels' full resolutions and the patch they share (Sec. 4)."""

    patch: Size = Field(description="(t, h, w) of the patch, the same on every level")
    levels: tuple[Size, ...] = Field(
        description="(t, h, w) of each level's whole video, coarsest first"
    )
    temporal_downsampling: Literal["stride", "average"] = Field(
        "stride", description="coarser levels in time: every k-th frame, or the mean of k frames"
    )

    @model_validator(mode="after")
    def _sound(self) -> "PyramidRecipe":
        problems = pyramid_problems(self.patch, self.levels)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def build(self) -> Pyramid:
        return Pyramid(patch=self.patch, levels=self.levels)


class ModelRecipe(Section):
    """The network: RIN blocks, context fusion, adaptive computation (Sec. 4.2, 4.3; Table 8)."""

    token: Size = Field(description="(t, h, w) pixels of a token")
    data_width: Positive = Field(description="width D of data tokens")
    latent_width: Positive = Field(description="width of latents")
    num_latents: Positive = Field(description="number of latents per patch")
    layers_per_block: Positive = Field(4, description="latent self-attention layers in a block")
    latent_heads: Positive = Field(24, description="heads of latent self-attention")
    latent_head_width: Positive = Field(128, description="width of one such head")
    cross_heads: Positive = Field(8, description="heads of cross-attention (reads and writes)")
    cross_head_width: Positive = Field(64, description="width of one such head")
    mlp_ratio: Positive = Field(4, description="hidden width of MLPs over their width")
    levels_per_block: tuple[Positive, ...] = Field(
        description="adaptive computation: how many of the lowest levels each block runs on"
    )
    context: Literal["deep", "shallow"] = Field(
        "deep",
        description="deep: features of all lower levels at every block; shallow: RGB of "
        "the level below",
    )
    detach_context: bool = Field(False, description="stop gradients from finer to coarser levels")
    coordinates: bool = Field(
        True, description="give the fusion layer each token's place in the video"
    )
    positions: Literal["learned", "factorised"] = Field(
        "learned", description="a position per token, or a sum of one per frame, row and column"
    )
    conditioning: Literal["none", "class", "text"] = Field(
        description="what videos are conditioned on"
    )
    num_classes: Positive | None = Field(
        None, description="number of classes; left out: taken from the data set"
    )
    condition_width: Positive = Field(1024, description="width of class embeddings or text tokens")
    self_conditioning: Share = Field(
        0.0, description="share of training samples that see the latents of an earlier pass (RIN)"
    )
    dropout: Share = Field(0.0, description="dropout inside the latent MLPs")

    @model_validator(mode="after")
    def _sound(self) -> "ModelRecipe":
        loads = self.levels_per_block
        if list(loads) != sorted(loads):
            raise ValueError(
                f"levels_per_block {list(loads)} falls; a level that entered stays to the end, "
                "so list it rising"
            )
        if self.detach_context and self.context == "shallow":
            raise ValueError(
                "detach_context has no effect with context: shallow, whose pixels carry no "
                "gradient; set one of them otherwise"
            )
        return self


class DiffusionRecipe(Section):
    """Noise per level and the input scaling (Sec. 4.5; SnapVideo's form of EDM)."""

    sigma_in: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        description="per level: the video is divided by it before noise is added"
    )
    noise_mean: tuple[float, ...] = Field(description="per level: mean of ln sigma in training")
    noise_std: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        description="per level: standard deviation of ln sigma in training"
    )
    level_weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        description="per level: weight of its loss"
    )
    condition_dropout: Share = Field(0.1, description="share of samples trained without condition")
    clean_context: Share = Field(
        0.0, description="share of samples whose lower levels are nearly clean, as at sampling"
    )


class OptimRecipe(Section):
    """Optimiser and learning rate (Sec. 4.6, Table 8)."""

    name: Literal["lamb", "adamw"] = Field("lamb", description="optimiser")
    lr: Annotated[float, Field(gt=0)] = Field(description="peak learning rate")
    betas: tuple[Share, Share] = Field((0.9, 0.99), description="decay of the two moments")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.01, description="not applied to biases, norms and tables"
    )
    grad_clip: Annotated[float, Field(gt=0)] = Field(
        1.0, description="largest norm of all gradients"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(description="steps of linear warm-up")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="after the warm-up")
    final_lr_share: Share = Field(
        0.0, description="learning rate at the last step, as a share of the peak"
    )


class TrainRecipe(Section):
    """The training loop."""

    steps: Positive = Field(description="optimiser steps")
    batch_size: Positive = Field(description="videos per step, over all devices")
    micro_batch: Positive | None = Field(
        None, description="videos per pass and device; smaller saves memory (default: all at once)"
    )
    seed: int = Field(0, description="seed of weights, data order and noise")
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "tf32", description="arithmetic of matrix products"
    )
    compile: bool = Field(False, description="use torch.compile")
    activation_checkpointing: bool = Field(False, description="recompute blocks to save memory")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="how several devices share the model"
    )
    ema_half_life: Annotated[float, Field(gt=0)] = Field(
        6000.0, description="half-life in steps of the averaged weights"
    )
    ema_ramp: Annotated[float, Field(gt=0)] = Field(
        0.1, description="the half-life is at most this share of the steps done (short runs)"
    )
    pyramid_cuts: Share = Field(
        0.0, description="share of steps that leave out the finest levels (appendix D)"
    )
    log_every: Positive = Field(50, description="steps between lines of metrics.jsonl")
    checkpoint_every: Positive = Field(description="steps between checkpoints")
    keep_checkpoints: Positive = Field(3, description="newest checkpoints to keep")
    preview_every: Annotated[int, Field(ge=0)] = Field(
        0, description="steps between previews; 0: none"
    )
    preview_videos: Positive = Field(8, description="videos in a preview")
    tensorboard: bool = Field(True, description="write TensorBoard events where it is installed")
    wandb: bool = Field(False, description="log to Weights & Biases where it is installed")


class SamplingRecipe(Section):
    """Solver per level and tiles (Sec. 4.4, appendix)."""

    steps: tuple[Positive, ...] = Field(description="solver steps per level")
    overlap: str = Field(
        "hw", description="axes on which tiles overlap by half: none or letters of fhw"
    )
    guidance: Annotated[float, Field(ge=0)] = Field(
        1.0, description="classifier-free guidance; 1 is off"
    )
    sigma_min: Annotated[float, Field(gt=0)] = Field(0.002, description="smallest noise level")
    sigma_max: Annotated[float, Field(gt=0)] = Field(80.0, description="largest noise level")
    rho: Annotated[float, Field(gt=0)] = Field(
        7.0, description="how densely small noise levels are visited"
    )
    context_sigma: Annotated[float, Field(gt=0)] = Field(
        0.002, description="noise level at which finished lower levels are given as context"
    )
    churn: Annotated[float, Field(ge=0)] = Field(
        40.0, description="stochasticity of level 0 (EDM's S_churn); 0 is deterministic"
    )
    fps: Annotated[float, Field(gt=0)] = Field(
        25.0, description="frames per second of written videos"
    )

    @model_validator(mode="after")
    def _sound(self) -> "SamplingRecipe":
        letters = "" if self.overlap == "none" else self.overlap
        if self.overlap == "" or set(letters) - set(AXES) or len(set(letters)) != len(letters):
            raise ValueError(
                f"overlap is {self.overlap!r}, expected none, f, h, w, fh, fw, hw or fhw"
            )
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} must be below sigma_max {self.sigma_max}")
        return self


class Recipe(Section):
    """A whole recipe."""

    name: Name = Field(description="name of the recipe; the default folder below runs/")
    description: str = Field("", description="one line on what it is for")
    data: DataRecipe
    pyramid: PyramidRecipe
    model: ModelRecipe
    diffusion: DiffusionRecipe
    optim: OptimRecipe
    train: TrainRecipe
    sampling: SamplingRecipe

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        problems = [*_level_problems(self), *_token_problems(self), *size_problems(self)]
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _level_problems(recipe: Recipe):
    levels = len(recipe.pyramid.levels)
    lists = {
        "diffusion.sigma_in": recipe.diffusion.sigma_in,
        "diffusion.noise_mean": recipe.diffusion.noise_mean,
        "diffusion.noise_std": recipe.diffusion.noise_std,
        "diffusion.level_weights": recipe.diffusion.level_weights,
        "sampling.steps": recipe.sampling.steps,
    }
    for name, values in lists.items():
        if len(values) != levels:
            yield (
                f"{name} has {len(values)} values, expected {levels}: "
                "one per level of pyramid.levels"
            )
    last = (recipe.model.levels_per_block or ("nothing",))[-1]
    if last != levels:
        yield (
            f"model.levels_per_block ends with {last}, expected {levels}: "
            "the last block must run on every level"
        )


def _token_problems(recipe: Recipe):
    for axis, patch, token in zip(
        ("frames", "height", "width"), recipe.pyramid.patch, recipe.model.token, strict=True
    ):
        if patch % token:
            yield (
                f"pyramid.patch has {axis} {patch}, which model.token's {token} does not divide; "
                "change one of them"
            )
