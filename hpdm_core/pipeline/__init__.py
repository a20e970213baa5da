"""A trained model that generates videos; loading, saving and sharing it."""
