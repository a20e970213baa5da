"""The paper's tables: what they say, what was measured, and how both are shown. Torch-free."""
