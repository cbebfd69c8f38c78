"""What is in a dataset, as figures per column of its index."""
