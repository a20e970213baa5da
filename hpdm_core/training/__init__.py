"""Optimisers, schedule, EMA weights, checkpoints, devices and the loop (Sec. 4.6, Table 8)."""
