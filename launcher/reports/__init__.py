"""HTML pages about runs and datasets."""
