"""The ground floor: what a sequence is, who holds it, and who sees whom."""
