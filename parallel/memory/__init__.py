"""What a step keeps for its backward pass: recompute, offload to the host, tiles of tokens."""
