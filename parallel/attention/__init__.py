"""Attention over many ranks: plan, ring and Ulysses, and what a plan costs."""
