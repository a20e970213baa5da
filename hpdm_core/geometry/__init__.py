"""Pure functions on boxes, pyramids and tiles; no networks."""
