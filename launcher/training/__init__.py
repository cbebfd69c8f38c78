"""One rank of a run: rendezvous, the loop, resume, guards, metrics."""
