"""Whether a text-to-video model draws what its prompts say, after it learned a few clips.

    python benchmarks/text_to_video.py --json --checkpoint runs/t2v_tiny --data data/captions

Draws one video for each caption of a data set. Brought down to the size of level 0, it is *named
right* if the clip nearest to it, of all clips of the data set, has its caption. Flicker, pixel
noise and high frequencies stand beside those of the clips with the same caption.

Axis legend: `b` videos, `n` clips, `t h w` frames, rows, columns.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate

from hpdm_core import Pipeline
from hpdm_core.data.dataset import open_dataset
from hpdm_core.data.video_io import VideoReader
from hpdm_core.metrics.quality import GREY_LEVEL, flicker, high_frequency, pixel_noise

MEASURES = {"flicker": flicker, "hh": pixel_noise, "high_frequency": high_frequency}
# Ratios are to at least a tenth of a grey level, so that clips that stand still have one.
SMALLEST = GREY_LEVEL / 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="run folder or weights file")
    parser.add_argument("--data", type=Path, required=True, help="the captioned videos it learned")
    parser.add_argument("--num", type=int, help="the first captions only")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--overlap", default="hw")
    parser.add_argument("--preset", choices=("paper", "fast"), default="paper")
    parser.add_argument("--text-encoder", help="default: that of the data set")
    parser.add_argument("--out", type=Path, help="keep the generated videos' frames (.npy)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pipe = Pipeline.from_pretrained(options.checkpoint, device="cpu")
    clips, captions = real_clips(options.data, pipe)
    prompts = list(dict.fromkeys(captions))[: options.num]
    drawn = pipe(
        prompts=prompts,
        seeds=list(range(options.seed, options.seed + len(prompts))),
        overlap=options.overlap,
        preset=options.preset,
        text_encoder=options.text_encoder,
    ).frames
    if options.out is not None:
        np.save(options.out, drawn)
    result = {"checkpoint": options.checkpoint, "step": pipe.step, "preset": options.preset}
    result |= figures(drawn, prompts, clips, captions, side=pipe.recipe.pyramid.levels[0][1:])
    print(json.dumps(result, indent=None if options.json else 1))


def real_clips(folder: Path, pipe: Pipeline) -> tuple[list[np.ndarray], list[str]]:
    """Return the first frames of every captioned clip, of the model's size, and their captions."""
    dataset = open_dataset(str(folder.parent), folder.name)
    indices = np.arange(pipe.pyramid.resolution[0]) * pipe.frame_stride
    entries = [e for e in dataset.entries if e.caption and e.num_frames > indices[-1]]
    clips = [VideoReader(folder / entry.path).read(indices) for entry in entries]
    size = pipe.pyramid.resolution[1:]
    clips = [_resized(clip, size).round().byte().numpy() for clip in clips]
    return clips, [entry.caption for entry in entries]


def figures(
    drawn: np.ndarray,
    prompts: list[str],
    clips: list[np.ndarray],
    captions: list[str],
    *,
    side: tuple[int, int],
) -> dict:
    """Return the fraction that is named right, by chance too, and the ratios to real clips.

    Args:
        drawn: (b, t, h, w, 3) uint8, one for each prompt.
        clips: n videos (t, h, w, 3) uint8 of `captions`.
        side: height and width at which videos are compared.
    """
    distances = torch.cdist(_small(list(drawn), side), _small(clips, side))  # (b, n)
    nearest = distances.argmin(dim=1).tolist()
    right = [captions[index] == prompt for index, prompt in zip(nearest, prompts, strict=True)]
    own = [captions.count(prompt) / len(captions) for prompt in prompts]
    result = {"prompts": len(prompts), "clips": len(clips)}
    result |= {"named_right": float(np.mean(right)), "named_right_by_chance": float(np.mean(own))}
    result["named_wrong"] = [p for p, good in zip(prompts, right, strict=True) if not good]
    for name, measure in MEASURES.items():
        generated = measure(drawn)
        real = np.array([float(measure(clip[None])[0]) for clip in clips])
        beside = np.array([real[[c == p for c in captions]].mean() for p in prompts])
        ratio = generated / np.maximum(beside, SMALLEST)
        result[name] = {"generated": float(generated.mean()), "real": float(beside.mean())}
        result[name]["ratio_median"] = float(np.median(ratio))
        result[name]["ratio_largest"] = float(ratio.max())
    return result


def _small(videos: list[np.ndarray], side: tuple[int, int]) -> Tensor:
    """Return videos (t, h, w, 3) at `side`, (b, t h w 3)."""
    return torch.stack([_resized(video, side).flatten() for video in videos])


def _resized(video: np.ndarray, side: tuple[int, int]) -> Tensor:
    """Bring (t, h, w, 3) to `side` by means over areas; float32."""
    pixels = rearrange(torch.from_numpy(video).float(), "t h w c -> t c h w")
    return rearrange(interpolate(pixels, tuple(side), mode="area"), "t c h w -> t h w c")


if __name__ == "__main__":
    main()
