"""Modules of a run's own: each registers something that a run may choose by name, such as an optimizer.

    extensions: [mine.lion]        in the file of a run, found where Python finds modules
    optimizer: {kind: lion}        chosen like any other, because `mine/lion.py` calls `OPTIMIZERS.register`

They are imported before the other keys are checked, and in every rank before it starts; so in a resume, an export or a
dry run too, which read the settings again. On a cluster they are installed on the nodes, or lie beside the job.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from parallel.errors import InputError


def import_extensions(settings: Mapping[str, Any]) -> None:
    """Import the modules that settings name; what is no list of names is left for the check of types.

    Raises:
        InputError: one cannot be imported.
    """
    named = settings.get("extensions")
    for name in named if isinstance(named, list | tuple) else ():
        if not isinstance(name, str):
            continue
        try:
            importlib.import_module(name)
        except InputError:
            raise
        except Exception as error:  # a module may raise what it likes
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            found = f"extensions: {name}: {reason}"
            remedy = (
                "its name as in Python, with PYTHONPATH=FOLDER before the command if it lies in a folder of its own"
            )
            raise InputError("extensions of a run can be imported", found, remedy) from error
