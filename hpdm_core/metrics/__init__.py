"""Scores of generated videos: Frechet distances, Inception Scores, and the detectors behind them."""
