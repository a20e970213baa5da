"""A trained model that generates videos; used by the command line, previews, scores and tables.

Axis legend: `b` videos, `c` channels, `t h w` frames, rows, columns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from hpdm_core import __version__
from hpdm_core.build import build_denoiser, build_sampling
from hpdm_core.device import resolve_device, set_precision
from hpdm_core.geometry.canvas import on_canvas
from hpdm_core.geometry.pyramid import Pyramid
from hpdm_core.inference.generate import ExecutionOptions, SamplingSettings, generate
from hpdm_core.inference.given import Continuation, Given, continue_video
from hpdm_core.pipeline import edit_calls
from hpdm_core.pipeline.batches import sample_batches, sizes_for
from hpdm_core.pipeline.card import Score
from hpdm_core.pipeline.conditions import Conditions, Request, make_requests
from hpdm_core.pipeline.editing import Edit
from hpdm_core.pipeline.export import save_model
from hpdm_core.pipeline.hub import upload_folder
from hpdm_core.pipeline.plan import BatchSizes, with_options
from hpdm_core.pipeline.pretrained import find_model, read_header, read_network
from hpdm_core.pipeline.resources import Resources
from hpdm_core.pipeline.videos import Videos, to_uint8
from hpdm_core.progress import NoProgress, Progress, TqdmProgress
from hpdm_core.recipe.sampling import Preset
from hpdm_core.recipe.schema import Recipe
from hpdm_core.records import SAMPLING_VERSION, Condition


@dataclass(frozen=True, kw_only=True, repr=False)
class Pipeline:
    """A trained model; `from_pretrained` reads one, a call generates videos.

    Args:
        recipe: of its training; its `sampling` section gives the defaults of a call.
        network: on its device, in inference mode.
        device: where the network is.
        classes: class names; empty for a model without classes.
        step: optimiser steps it was trained for.
        path: weights file; None for a network that was not read from one.
        sha256: of that file.
        metadata: of that file, as text.
        num_levels: number of generated levels, from the coarsest; None for all.
        class_prompts: prompts that stand in for `classes` of a text-conditional model.
    """

    recipe: Recipe
    network: nn.Module
    device: torch.device
    classes: tuple[str, ...] = ()
    step: int = 0
    path: Path | None = None
    sha256: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    num_levels: int | None = None
    class_prompts: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(
        cls,
        ref: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
    ) -> "Pipeline":
        """Read a trained model with its EMA weights.

        Args:
            ref: a run folder, checkpoint folder, exported folder or weights file; 'shipped' for
                the model that comes with the package; 'hf://owner/name[@revision]' for one on the
                Hugging Face Hub; None for the newest run under runs/, else the shipped one.
            device: 'auto', 'cpu', 'cuda', or a torch device.

        Raises:
            CheckpointError: there is none, it is damaged, or another version of hpdm wrote it.
            DeviceError: there is no such device.
        """
        if not isinstance(device, torch.device):
            device = resolve_device(device)
        path = find_model(ref)
        header = read_header(path)
        network, sha256 = read_network(path, header)
        set_precision(header.recipe.train.precision, device=device)
        return cls(
            recipe=header.recipe,
            network=network.to(device),
            device=device,
            classes=header.classes if header.recipe.model.conditioning == "class" else (),
            step=header.step,
            path=path,
            sha256=sha256,
            metadata=header.metadata,
        )

    def __repr__(self) -> str:
        size = "x".join(str(side) for side in self.pyramid.resolution)
        kind = f"{len(self.classes)} classes" if self.classes else self.recipe.model.conditioning
        return f"Pipeline({self.recipe.name}: {size}, {kind}, step {self.step}, on {self.device})"

    @property
    def pyramid(self) -> Pyramid:
        """The levels that are generated."""
        whole = self.recipe.pyramid.build()
        return replace(whole, levels=whole.levels[: self.num_levels])

    @property
    def settings(self) -> SamplingSettings:
        """The recipe's sampling settings."""
        return build_sampling(self.recipe)

    @property
    def facts(self) -> dict[str, object]:
        """Everything that a video depends on besides weights, seed and class, for records."""
        prompts = {"prompts": list(self.class_prompts)} if self.class_prompts else {}
        return asdict(self.settings) | prompts | {"sampling_version": SAMPLING_VERSION}

    @property
    def data_folder(self) -> str:
        """Folder of the data set that it was trained on."""
        return str(Path(self.recipe.data.root) / self.recipe.data.name)

    @property
    def frame_stride(self) -> int:
        """Generated frames correspond to every n-th frame of the data."""
        levels = self.recipe.pyramid.build()
        return self.recipe.data.frame_stride * levels.stride(self.pyramid.num_levels - 1)[0]

    def __call__(
        self,
        *,
        classes: str | int | Sequence[str | int] = (),
        prompts: str | Sequence[str] = (),
        seeds: int | Sequence[int] | None = None,
        preset: Preset | None = None,
        overlap: str | None = None,
        steps: Sequence[int] | None = None,
        guidance: float | None = None,
        text_encoder: str | None = None,
        resources: Resources | None = None,
        progress: Progress | None = None,
        size: Sequence[int] | None = None,
        given: Edit | None = None,
    ) -> Videos:
        """Generate videos. A video depends only on its seed, class or prompt, and the settings.

        Args:
            classes: names or indices, one for all videos or one for each; none: all in turn.
            prompts: texts, one for all videos or one for each.
            seeds: one per video; None counts from 0, one for each class or prompt asked for.
            preset: schedule, 'paper' or 'fast'; None uses the recipe's own.
            overlap: axes on which tiles overlap by half, 'none' or some of 'fhw'; None uses the
                recipe's; likewise for steps and guidance.
            steps: solver steps of each level, coarsest first.
            guidance: classifier-free guidance scale; 1 disables it.
            text_encoder: for prompts; None uses that of the training data.
            resources: how memory is used; None: chosen from free memory.
            progress: progress bar; None shows a tqdm bar.
            size: frames, height, width of a canvas larger than the model's videos.
            given: what is done with a given video; see `upscale`, `edit`, `inpaint`, `extend`.

        Raises:
            HpdmError: unknown class or preset, or an option is out of range.
        """
        requests = make_requests(
            self.recipe,
            self.classes,
            classes=[classes] if isinstance(classes, str | int) else list(classes),
            prompts=[prompts] if isinstance(prompts, str) else list(prompts),
            seeds=[seeds] if isinstance(seeds, int) else seeds,
            edited=given is not None,
        )
        settings = with_options(
            build_sampling(self.recipe, preset=preset),
            overlap=overlap,
            steps=steps,
            guidance=guidance,
            text=self.recipe.model.conditioning == "text",
            pyramid=self.pyramid,
            size=size,
        )
        taken = None
        if given is not None:
            pyramid = on_canvas(self.pyramid, settings.size)
            settings = given.settings(settings, pyramid)
            taken = given.given(pyramid, fps=self.recipe.sampling.fps)
        videos = self.sample(
            [request.seed for request in requests],
            self.conditions(requests, text_encoder=text_encoder).of(requests),
            settings=settings,
            resources=resources,
            progress=progress or TqdmProgress(),
            given=taken,
        )
        return Videos(
            frames=to_uint8(videos).numpy(), fps=self.recipe.sampling.fps, requests=tuple(requests)
        )

    upscale, edit = edit_calls.upscale, edit_calls.edit
    inpaint, extend = edit_calls.inpaint, edit_calls.extend

    def sample(
        self,
        seeds: Sequence[int],
        condition: Condition,
        *,
        level: int | None = None,
        settings: SamplingSettings | None = None,
        resources: Resources | None = None,
        progress: Progress | None = None,
        given: Given | Continuation | None = None,
    ) -> Tensor:
        """Generate the videos of one level, in batches that fit into memory.

        Args:
            seeds: one per video.
            condition: one row per video.
            level: index of the level; None for the finest. Finer ones are not computed.
            settings: None uses the recipe's.
            resources: how memory is used; None: chosen from free memory.
            progress: bar over solver calls; None shows nothing.
            given: a video that sampling starts from or keeps a part of, for the finest level.

        Returns:
            (b, c, t, h, w) float32 on the CPU, about [-1, 1], not clamped.
        """
        return sample_batches(
            self,
            seeds,
            condition,
            level=self.pyramid.num_levels - 1 if level is None else level,
            settings=settings or self.settings,
            resources=resources or Resources(),
            progress=progress or NoProgress(),
            given=given,
        )

    def generate(
        self,
        seeds: Sequence[int],
        condition: Condition,
        *,
        settings: SamplingSettings,
        tile_batch: int,
        resources: Resources,
        advance: Callable[[int, int], None],
        given: Given | Continuation | None = None,
    ) -> tuple[Tensor, ...]:
        """Generate one batch of videos, all levels of each; see `hpdm_core.inference.generate`.

        Args:
            seeds: one per video.
            condition: one row per video.
            settings: solvers, which may stop at a coarser level, and tiles.
            tile_batch: tiles in one pass of the network.
            resources: activation cache, and this process's part of the tiles.
            advance: called after every call of a level's solver with (level, calls of that level).
            given: as for `sample`; of a video that is extended only the finest level is returned.
        """
        pyramid = self.recipe.pyramid.build()
        work = ExecutionOptions(
            device=self.device,
            tile_batch=tile_batch,
            make_cache=resources.cache_maker(self.device),
            shard=resources.shard,
            advance=advance,
        )
        denoiser, condition = build_denoiser(self.recipe, self.network), condition.to(self.device)
        draw = partial(generate, denoiser, pyramid, settings, condition=condition, work=work)
        if isinstance(given, Continuation):
            return (continue_video(draw, on_canvas(pyramid, settings.size), given, seeds=seeds),)
        return draw(seeds=tuple(seeds), given=given)

    def batch_sizes(
        self, settings: SamplingSettings, count: int, resources: Resources
    ) -> BatchSizes:
        """Return the batch sizes for `count` videos and their tiles."""
        return sizes_for(self, settings, count, resources)

    def conditions(
        self, requests: Sequence[Request], *, text_encoder: str | None = None
    ) -> Conditions:
        """Encode all prompts of requests, for batches of them.

        Raises:
            DataError: no text encoder that fits.
        """
        prompts = [request.prompt for request in requests if request.prompt is not None]
        return Conditions(self.recipe, prompts, text_encoder=text_encoder, device=self.device)

    def condition_of(self, labels: Sequence[int]) -> Condition:
        """Return the conditions of classes; empty for an unconditional model."""
        if self.class_prompts:
            return self._class_condition.select(torch.tensor(labels))
        by_class = self.recipe.model.conditioning == "class"
        return Condition(labels=torch.tensor(labels) if by_class else None).to(self.device)

    def save_pretrained(
        self, folder: str | Path, *, scores: Mapping[str, Score] | None = None
    ) -> Path:
        """Write weights (safetensors), recipe and model card, as `from_pretrained` reads them.

        Args:
            folder: created if absent.
            scores: figures for the model card by name, such as {'FVD, 2,048 videos': 143.2}.

        Raises:
            HpdmError: it cannot be written.
        """
        return save_model(
            Path(folder),
            self.network,
            self.recipe,
            classes=self.classes,
            step=self.step,
            metadata={"hpdm_version": __version__, **self.metadata},
            scores=scores or {},
        )

    def push_to_hub(
        self, repo: str, *, private: bool = False, scores: Mapping[str, Score] | None = None
    ) -> str:
        """Upload what `save_pretrained` writes to a model repository of the Hugging Face Hub.

        Args:
            repo: `owner/name`, with `@revision` for another branch; made if it is absent.
            private: whether a new repository is private.
            scores: as for `save_pretrained`.

        Returns:
            the repository's address.

        Raises:
            HpdmError: the Hub refuses or cannot be reached.
        """
        with TemporaryDirectory() as folder:
            return upload_folder(self.save_pretrained(folder, scores=scores), repo, private=private)

    @cached_property
    def _class_condition(self) -> Condition:
        """One row for each of `class_prompts`."""
        requests = [Request(index=i, seed=0, prompt=p) for i, p in enumerate(self.class_prompts)]
        return self.conditions(requests).of(requests)
