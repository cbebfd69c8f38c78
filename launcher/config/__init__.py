"""The settings of a run: schema, checks, overrides, the words of errors."""
