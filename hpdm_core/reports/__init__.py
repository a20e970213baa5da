"""The paper's tables: published figures, our measurements, and reports of both. Torch-free."""
