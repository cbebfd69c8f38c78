"""Shards, plan and stream: which samples a step trains on, and how a rank reads its part of them."""
