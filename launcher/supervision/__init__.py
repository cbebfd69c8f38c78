"""Who starts, watches and restarts the ranks."""
