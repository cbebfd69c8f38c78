"""The one error for people: a rule, the value that breaks it, and a remedy.

It lies on the ground floor because every floor raises it. The command line prints it as three lines and exits
with 2; everything else (a bug, a crash) keeps its traceback and exits with 1.
"""

from __future__ import annotations


class InputError(ValueError):
    """Something that the user gave cannot work.

    Args:
        rule: what must hold, in one sentence without a full stop.
        value: what was found instead, with the name of the file, key or flag.
        remedy: what to type or change.
    """

    def __init__(self, rule: str, value: str, remedy: str) -> None:
        super().__init__(rule, value, remedy)  # all three, so that the error survives pickling between processes
        self.rule, self.value, self.remedy = rule, value, remedy

    def __str__(self) -> str:
        return f"{self.rule}\n  found:  {self.value}\n  remedy: {self.remedy}"
