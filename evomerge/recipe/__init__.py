"""Recipes: one YAML file says everything about a run."""
