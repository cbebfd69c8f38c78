"""Optimizers of a run: each in a file of its own, with its settings and what it keeps of a parameter."""
