"""What every family of models is asked for, and the module that an engine wraps."""
