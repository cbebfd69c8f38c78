"""Who sees whom: masks as rectangles with diagonal bands, and the patterns that are made of them."""
