"""The dry run: one real training step of any rank of any mesh on fake tensors, with no GPU, no weights and no data."""
