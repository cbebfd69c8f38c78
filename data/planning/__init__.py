"""Which samples a step trains on: pure arithmetic on lengths, costs, a seed and a position."""
