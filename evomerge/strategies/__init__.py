"""Strategies: how a population moves. Each is one file, a pure ask/tell over a frozen state."""
