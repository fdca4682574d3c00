"""Experts on disk and in memory: reading and writing PEFT adapters, the pool, and the base model."""
