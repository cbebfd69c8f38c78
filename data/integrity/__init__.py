"""Check and repair a dataset, down to the byte that is wrong."""
