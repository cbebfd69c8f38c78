"""The one place where a folder of transformers or diffusers is opened: it holds settings and numbers, never code.

Such a folder may bring Python files of its own, which these libraries run where they are told to (or where somebody
types "y"), and weights as pickles, which run code when they are opened. Nothing is downloaded either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parallel.errors import InputError

RULE = "a folder of a model brings no code of its own"


def from_folder(kind: Any, folder: Path | str, **more: Any) -> Any:
    """`kind.from_pretrained(folder)` of transformers or diffusers.

    Args:
        kind: a class that has it.
        folder: on this machine.
        more: what else it is given.

    Raises:
        InputError: it works with code of the folder alone.
        OSError, ValueError, KeyError: as of the library: there is no such thing in the folder. What else it raises
            over files that are not what it expects is a ValueError, too.
    """
    try:
        return _opened(kind, folder, more)
    except (InputError, OSError, ValueError, KeyError):
        raise
    except Exception as error:  # 200,000 brackets, a number for a text, and whatever its own parsers raise
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _opened(kind: Any, folder: Path | str, more: dict[str, Any]) -> Any:
    if kind.__module__.partition(".")[0] == "diffusers":
        return kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, **more)
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **more)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        remedy = "give a folder of a model that the installed transformers knows by itself"
        raise InputError(RULE, f"{folder} cannot be opened without running Python files of it", remedy) from error
