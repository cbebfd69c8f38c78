"""What a run will cost or has done: plans, simulations, audits, incidents, drills."""
