"""Every field of a recipe, typed and described. Sizes are set in recipes, so few have defaults.

Axis legend: `t h w` frames, rows, columns. Level 0 is the coarsest.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hpdm_core.geometry.pyramid import Pyramid, pyramid_problems
from hpdm_core.recipe.bounds import size_problems
from hpdm_core.recipe.consistency import block_problems, level_problems, token_problems
from hpdm_core.recipe.fields import AboveZero, Fraction, Name, NotNegative, Positive, Section, Size
from hpdm_core.recipe.sampling import SamplingRecipe


class DataRecipe(Section):
    """Data set, and how clips are sampled from it."""

    root: str = Field("./data", description="folder that `hpdm prep` wrote to")
    name: Name = Field(description="data set's name below the root")
    split: str = Field("train", description="which split of the manifest to train on")
    frame_stride: Positive = Field(1, description="take every n-th frame of the source")
    short_clips: Literal["drop", "loop", "hold"] = Field(
        "drop", description="videos with too few frames: leave out, repeat, or hold the last frame"
    )
    flip: bool = Field(False, description="mirror half of the clips left to right")
    image_fraction: Fraction = Field(
        0.0, description="fraction of samples that are a still, repeated in time"
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
    offsets: Literal["whole", "fractional"] = Field(
        "whole",
        description="patches in training: at whole pixels of their level (Sec. 4.5); anywhere, by "
        "trilinear interpolation (`hpdm ablate claims`)",
    )

    @model_validator(mode="after")
    def _sound(self) -> "PyramidRecipe":
        problems = pyramid_problems(self.patch, self.levels)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def build(self) -> Pyramid:
        return Pyramid(
            patch=self.patch,
            levels=self.levels,
            temporal_downsampling=self.temporal_downsampling,
        )


class ModelRecipe(Section):
    """The network: blocks, context fusion, adaptive computation (Sec. 4.2, 4.3; Table 8).

    Fields marked (rin) or (transformer) belong to that kind of block alone. Under the other kind
    they are allowed and not used, so that `model.block=transformer` works on any recipe.
    """

    token: Size = Field(description="(t, h, w) pixels of a token")
    block: Literal["rin", "transformer", "shared_rin"] = Field(
        "rin",
        description="rin: latents read the data tokens, self-attend and write back (the "
        "paper's); transformer: data tokens self-attend, with adaptive norms (DiT); shared_rin: "
        "one rin block at every depth (`hpdm ablate claims`)",
    )
    data_width: Positive = Field(description="width D of data tokens")
    latent_width: Positive | None = Field(None, description="(rin) width of latents; required")
    num_latents: Positive | None = Field(
        None, description="(rin) number of latents per patch; required"
    )
    layers_per_block: Positive = Field(
        4, description="layers of self-attention in a block: of latents (rin) or data tokens"
    )
    latent_heads: Positive = Field(24, description="(rin) heads of latent self-attention")
    latent_head_width: Positive = Field(128, description="(rin) width of one such head")
    cross_heads: Positive = Field(8, description="(rin) heads of cross-attention (reads, writes)")
    cross_head_width: Positive = Field(64, description="(rin) width of one such head")
    head_width: Positive = Field(
        32, description="(transformer) width of an attention head; must divide data_width"
    )
    mlp_ratio: Positive = Field(4, description="hidden width of MLPs over their width")
    levels_per_block: tuple[Positive, ...] = Field(
        description="adaptive computation: how many of the lowest levels each block runs on; "
        "rising, or (`hpdm ablate claims`) falling"
    )
    context: Literal["deep", "shallow", "concatenated", "averaged", "sinusoidal"] = Field(
        "deep",
        description="deep: features of all lower levels at every block; shallow: RGB of "
        "the level below; others for `hpdm ablate claims`: levels' features concatenated, "
        "averaged with the level's own, or sinusoidal coordinates",
    )
    detach_context: bool = Field(False, description="stop gradients from finer to coarser levels")
    coordinates: bool = Field(
        True, description="give the fusion layer each token's position in the video"
    )
    positions: Literal["learned", "factorised"] = Field(
        "learned", description="an embedding per token, or a sum of one per frame, row and column"
    )
    conditioning: Literal["none", "class", "text"] = Field(
        description="what videos are conditioned on"
    )
    num_classes: Positive | None = Field(
        None, description="number of classes; default: the data set's"
    )
    condition_width: Positive = Field(1024, description="width of class embeddings or text tokens")
    self_conditioning: Fraction = Field(
        0.0, description="(rin) fraction of samples whose latents start from an earlier pass"
    )
    dropout: Fraction = Field(0.0, description="dropout inside the MLPs that follow self-attention")

    @model_validator(mode="after")
    def _sound(self) -> "ModelRecipe":
        loads = self.levels_per_block
        if list(loads) not in (sorted(loads), sorted(loads, reverse=True)):
            raise ValueError(
                f"levels_per_block {list(loads)} rises and falls; a level skips either the first "
                "blocks or the last ones, so list it rising (the paper's) or falling"
            )
        if self.detach_context and self.context == "shallow":
            raise ValueError(
                "detach_context has no effect with context: shallow, whose pixels carry no "
                "gradient; set one of them otherwise"
            )
        if self.context == "sinusoidal" and not self.coordinates:
            raise ValueError(
                "context: sinusoidal is about coordinates, which coordinates: false leaves out; "
                "set one of them otherwise"
            )
        problems = list(block_problems(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


class DiffusionRecipe(Section):
    """Noise by level, and what the network predicts (Sec. 4.5, 4.6; Karras et al. 2022)."""

    parametrisation: Literal["v", "x", "snapvideo"] = Field(
        "v",
        description="what the network predicts: v in EDM's form, the clean video, or v in "
        "SnapVideo's form",
    )
    sigma_data: AboveZero = Field(0.5, description="standard deviation of the videos (v and x)")
    sigma_in: tuple[AboveZero, ...] = Field(
        description="per level: input scaling, which shifts the level's noise towards larger values"
    )
    noise_mean: tuple[float, ...] = Field(
        description="per level: mean of ln(sigma / sigma_in) in training"
    )
    noise_std: tuple[AboveZero, ...] = Field(
        description="per level: standard deviation of ln sigma in training"
    )
    level_weights: tuple[NotNegative, ...] = Field(description="per level: weight of its loss")
    x_weight_cap: AboveZero = Field(
        400.0, description="largest weight of a squared error of the clean video (x)"
    )
    condition_dropout: Fraction = Field(0.1, description="fraction of samples without condition")
    clean_context: Fraction = Field(
        0.0,
        description="fraction of samples whose lower levels are at context_sigma, as at sampling",
    )
    context_sigma: AboveZero = Field(
        0.05, description="noise level of finished lower levels, in training and at sampling"
    )


class OptimRecipe(Section):
    """Optimiser and learning rate (Sec. 4.6, Table 8)."""

    name: Literal["lamb", "adamw", "muon"] = Field(
        "lamb", description="optimiser; `muon`: Muon for the blocks' matrices, AdamW for the rest"
    )
    lr: Annotated[float, Field(gt=0)] = Field(description="peak learning rate")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.99), description="decay of the two moments")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.01, description="not applied to biases and norms"
    )
    grad_clip: Annotated[float, Field(gt=0)] = Field(
        1.0, description="largest norm of all gradients"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(description="steps of linear warm-up")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="after the warm-up")
    final_lr_fraction: Fraction = Field(
        0.0, description="learning rate at the last step, as a fraction of the peak"
    )


class TrainRecipe(Section):
    """The training loop."""

    steps: Positive = Field(description="optimiser steps")
    batch_size: Positive = Field(description="videos per step, over all devices")
    micro_batch: Positive | None = Field(
        None, description="videos per pass and device (default: as many as memory holds)"
    )
    seed: int = Field(0, description="seed of weights, data order and noise")
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "tf32", description="precision of matrix products, on devices that have it; else fp32"
    )
    compile: bool = Field(False, description="use torch.compile")
    activation_checkpointing: bool = Field(False, description="recompute blocks to save memory")
    parallel: Literal["ddp", "fsdp"] = Field("ddp", description="parallelism over several devices")
    replicas: Positive = Field(
        1, description="fsdp: copies of the sharded model (HSDP), such as one per machine"
    )
    ema_half_life: Annotated[float, Field(gt=0)] = Field(
        6000.0, description="half-life of the EMA weights in steps"
    )
    ema_rampup_ratio: Annotated[float, Field(gt=0)] = Field(
        0.1, description="the half-life is at most this fraction of the steps done (short runs)"
    )
    level_drop_prob: Fraction = Field(
        0.0, description="level dropout: probability of a step without the finest levels (app. D)"
    )
    distill: tuple[Positive, ...] | None = Field(
        None,
        description="evaluations per level of a student (`hpdm finetune --distill`); "
        "`sampling` must be its schedule",
    )
    distill_substeps: Positive = Field(
        4, description="steps of the teacher for one of the student's"
    )
    log_every: Positive = Field(50, description="steps between lines of metrics.jsonl")
    checkpoint_every: Positive = Field(description="steps between checkpoints")
    async_checkpoints: bool = Field(
        False, description="write checkpoints beside training, from a copy in main memory"
    )
    keep_checkpoints: Positive = Field(3, description="newest checkpoints to keep")
    preview_every: Annotated[int, Field(ge=0)] | None = Field(
        None, description="steps between previews (default: at the end only); 0: none"
    )
    preview_videos: Positive = Field(8, description="videos in a preview")
    tensorboard: bool = Field(True, description="write TensorBoard events where it is installed")
    wandb: bool = Field(False, description="log to Weights & Biases where it is installed")


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
        problems = [*level_problems(self), *token_problems(self), *size_problems(self)]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def with_fields(self, section: str, values: Mapping[str, object]) -> "Recipe":
        """Return the recipe with some fields of a section changed; they are not checked."""
        return self.model_copy(
            update={section: getattr(self, section).model_copy(update=dict(values))}
        )
