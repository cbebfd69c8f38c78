"""Video and images as frames: decode, encode, color, rate, time."""
