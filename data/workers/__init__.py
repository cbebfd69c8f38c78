"""Functions over many files: worker processes, Ray tasks, prefetching threads, a sandbox."""
