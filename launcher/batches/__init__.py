"""From samples to the batches of a rank, made ready in the background."""
