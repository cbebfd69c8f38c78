"""Datasets made on this machine: moving shapes, questions about them, needles in haystacks."""
