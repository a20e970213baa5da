"""Upscaling against bicubic, inpainting against simple fills, on rendered shapes held back.

    python benchmarks/editing.py --checkpoint CHECKPOINT --json

Axis legend: `b` videos, `t h w` frames, rows, columns.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch.nn.functional import interpolate

import hpdm_core as hpdm
from hpdm_core.data.pictures import labelled_row, write_webp
from hpdm_core.data.shapes import render
from hpdm_core.inference.given import lower_levels
from hpdm_core.metrics.quality import high_frequency
from hpdm_core.pipeline.videos import to_uint8
from hpdm_core.progress import NoProgress

FIRST_SEED = 1_000_000  # far from those that `hpdm prep shapes` renders
REPEATS = (8, 2, 1)  # level 0 decides what is drawn, and is cheap


def main() -> None:
    """Measure, print, and draw with --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="shapes")
    parser.add_argument("--num", type=int, default=4, help="videos of each kind")
    parser.add_argument("--out", type=Path, help="folder for pictures")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    pipe = hpdm.Pipeline.from_pretrained(args.checkpoint, device="cpu")
    frames, size, _ = pipe.pyramid.resolution
    labels = [k * 7 % len(pipe.classes) for k in range(args.num)]
    real = np.stack(
        [render(FIRST_SEED + k, label, frames=frames, size=size).frames
         for k, label in enumerate(labels)]
    )  # fmt: skip
    names = [pipe.classes[label] for label in labels]
    result = {"checkpoint_step": pipe.step, "videos": args.num}
    result |= _upscaling(pipe, real, names, args.out) | _inpainting(pipe, real, names, args.out)
    for name, value in result.items():
        if not args.json:
            print(f"{name}: {value}")
    if args.json:
        print(json.dumps(result))


def _upscaling(
    pipe: hpdm.Pipeline, real: np.ndarray, names: list[str], out: Path | None
) -> dict[str, float]:
    """Return high frequencies over those of the real videos, and the error brought down again."""
    truth = _levels(pipe, real)
    small = to_uint8(truth[0]).numpy()
    made = np.concatenate(
        [pipe.upscale(small[k], classes=name, seeds=k, overlap="hw", progress=NoProgress()).frames
         for k, name in enumerate(names)]
    )  # fmt: skip
    bicubic = _bicubic(small, real.shape[1:4])
    _draw(out, "upscaled.webp", pipe.recipe.sampling.fps,
          {"input": _blocks(small, real.shape[1:4]), "bicubic": bicubic, "upscaled": made,
           "real": real})  # fmt: skip
    again = {name: _levels(pipe, v)[0] for name, v in (("upscaled", made), ("bicubic", bicubic))}
    detail = high_frequency(real).mean()
    return {
        "high_frequency_upscaled_over_real": high_frequency(made).mean() / detail,
        "high_frequency_bicubic_over_real": high_frequency(bicubic).mean() / detail,
        "consistency_rms_upscaled": _rms(again["upscaled"], truth[0]),
        "consistency_rms_bicubic": _rms(again["bicubic"], truth[0]),
    }


def _inpainting(
    pipe: hpdm.Pipeline, real: np.ndarray, names: list[str], out: Path | None
) -> dict[str, float]:
    """Return the PSNR in dB of the middle third of the columns, by way of filling it."""
    width = real.shape[3]
    left, third = width // 3, width - 2 * (width // 3)
    columns = slice(left, left + third)
    box = (left, 0, third, real.shape[2])
    made = np.concatenate(
        [pipe.inpaint(real[k], box, classes=name, seeds=k, overlap="hw", repeats=REPEATS,
                      progress=NoProgress()).frames for k, name in enumerate(names)]
    )  # fmt: skip
    known = np.delete(real, np.arange(width)[columns], axis=3).astype(float)
    mean, border = real.copy(), real.copy()
    mean[..., columns, :] = known.mean(axis=(2, 3), keepdims=True)
    half = third // 2
    border[..., left : left + half, :] = real[..., left - 1 : left, :]
    border[..., left + half : left + third, :] = real[..., left + third : left + third + 1, :]
    masked = real.copy()
    masked[..., columns, :] = 128
    _draw(out, "inpainted.webp", pipe.recipe.sampling.fps,
          {"input": masked, "inpainted": made, "real": real})  # fmt: skip
    fills = {"inpainted": made, "mean_colour": mean, "border_copy": border}
    outside = np.delete(made, np.arange(width)[columns], axis=3) - known
    return {"largest_difference_outside": float(abs(outside).max())} | {
        f"psnr_{name}": float(np.mean([
            -20 * np.log10(_rms(a[..., columns, :] / 255.0, b[..., columns, :] / 255.0))
            for a, b in zip(fill, real, strict=True)]))
        for name, fill in fills.items()
    }  # fmt: skip


def _levels(pipe: hpdm.Pipeline, videos: np.ndarray) -> tuple[torch.Tensor, ...]:
    pixels = rearrange(torch.from_numpy(videos).float() / 127.5 - 1, "b t h w c -> b c t h w")
    return lower_levels(pipe.pyramid, pixels, pipe.pyramid.num_levels - 1)


def _bicubic(small: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Enlarge by bicubic interpolation in space; in time each frame stands until the next."""
    t, h, w = size
    flat = rearrange(torch.from_numpy(small).float(), "b t h w c -> (b t) c h w")
    large = interpolate(flat, (h, w), mode="bicubic", align_corners=False).clamp(0, 255).round()
    video = rearrange(large.byte().numpy(), "(b t) c h w -> b t h w c", b=len(small))
    return video.repeat(t // video.shape[1], axis=1)


def _blocks(small: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    for axis, target in enumerate(size, start=1):
        small = small.repeat(target // small.shape[axis], axis=axis)
    return small


def _rms(a: np.ndarray | torch.Tensor, b: np.ndarray | torch.Tensor) -> float:
    return float(((a - b) ** 2).mean() ** 0.5)


def _draw(out: Path | None, name: str, fps: float, parts: dict[str, np.ndarray]) -> None:
    """Write the videos side by side, a row for each of the first three."""
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    rows = [labelled_row(list(row), list(parts)) for row in zip(*parts.values(), strict=True)]
    write_webp(out / name, np.concatenate(rows[:3], axis=1), fps)


if __name__ == "__main__":
    main()
