"""Scores of generated videos: Frechet distance, Inception Score, and the detectors behind them."""
