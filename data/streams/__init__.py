"""From plan to samples: what a rank reads for each step."""
