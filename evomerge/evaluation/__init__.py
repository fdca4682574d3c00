"""Evaluation: the only place that runs a model to score an individual."""
