"""The front door: a trained model that generates videos, and how it is read, saved and shared."""
