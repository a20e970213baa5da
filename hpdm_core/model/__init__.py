"""The network: RIN blocks on a pyramid of patches (Sec. 3.2, 4.2, 4.3; Fig. 11)."""
