"""Whole videos from a denoiser of patches: tiles, caching, levels one after the other."""
