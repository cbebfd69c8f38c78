"""Faults that a rank makes itself suffer, to test recovery."""
