"""Results as tables on a terminal, or as JSON."""
