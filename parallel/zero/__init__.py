"""The engine of a training step: ZeRO 0 to 3, the optimizer, moving averages, models that are never whole."""
