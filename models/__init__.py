"""What is trained: single-device code with no rank and no process group in it."""
