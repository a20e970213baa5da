"""Whole videos from a patch denoiser: tiled inference, activation cache, level by level."""
