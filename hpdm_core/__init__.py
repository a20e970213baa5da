"""Hierarchical Patch Diffusion Models (Skorokhodov et al., CVPR 2024)."""

__version__ = "0.1.0"
