"""Which clips are worth keeping: shots, scores, filters, near duplicates."""
