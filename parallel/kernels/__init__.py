"""Attention kernels: one launch each, forward and backward, and which of them a GPU runs fastest."""
