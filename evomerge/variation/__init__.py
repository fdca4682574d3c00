"""Variation: pure functions from stacks of genomes to new genomes; no model, no disk."""
