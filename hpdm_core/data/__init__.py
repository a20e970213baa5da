"""From videos on disk to batches of nested patches."""
