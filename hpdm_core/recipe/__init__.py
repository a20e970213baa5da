"""Recipes: one typed schema, read from YAML. Imports no torch."""
