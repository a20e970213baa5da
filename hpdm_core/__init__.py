"""Hierarchical Patch Diffusion Models (Skorokhodov et al., CVPR 2024).

The names below are imported when they are first used, so that `import hpdm_core` and the command
line's help need no torch.
"""

import importlib

__version__ = "0.2.0"
_NAMES = {
    "Condition": "records",
    "HpdmError": "errors",
    "PatchBatch": "records",
    "Pipeline": "pipeline.pipeline",
    "Pyramid": "geometry.pyramid",
    "Resources": "pipeline.resources",
    "Videos": "pipeline.videos",
    "build_denoiser": "build",
    "build_diffusion": "build",
    "build_network": "build",
    "build_optimizer": "build",
    "build_schedule": "build",
    "draw_offsets": "geometry.patches",
    "extract_patches": "geometry.patches",
    "load_recipe": "recipe.load",
}
__all__ = list(_NAMES)


def __getattr__(name: str) -> object:
    """Import a public name (PEP 562)."""
    if name not in _NAMES:
        raise AttributeError(f"module 'hpdm_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hpdm_core.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
