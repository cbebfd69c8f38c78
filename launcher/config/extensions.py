"""Extensions: files of a user's own, imported before the settings of a run are checked.

    extensions: [my_model.py]          relative to the YAML's folder; or modules that Python finds: [my_package.models]
    model: {kind: mine, ...}           what the file has registered (`parallel.registries`) can be chosen by its name

Every process that reads the run imports them: commands, ranks under any launcher, and whoever unpickles a `RunConfig`.
What lies there is known by a hash (`hashes_of`) that checkpoints keep. A file is executed: name only what you trust.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from blake3 import blake3

from parallel.errors import InputError
from parallel.parsing import shorter

SUFFIX = ".py"
RULE = "extensions of a run can be imported"
LENGTH = 16  # bytes of a hash
_imported: dict[str, ModuleType] = {}  # files by the hash of what they say: a copy of one is not executed again
_hashes: dict[str, str] = {}  # of files that this process has imported, by path


def absolute(extensions: Any, folder: Path) -> Any:
    """The same, with files as absolute paths; what is no list of words stays as it is, and is refused later."""
    if not isinstance(extensions, list | tuple):
        return extensions
    return [_file(one, folder) if isinstance(one, str) and one.endswith(SUFFIX) else one for one in extensions]


def import_extensions(extensions: Any) -> None:
    """Import each, once a process.

    Raises:
        InputError: one is not there, fails, changed since this process imported it, or registers a name that is taken.
    """
    if not isinstance(extensions, list | tuple) or not all(isinstance(one, str) and one for one in extensions):
        raise InputError(RULE, f"extensions: {shorter(extensions)}", "extensions: [my_model.py]")
    for name in extensions:
        try:
            _import_file(Path(name)) if name.endswith(SUFFIX) else importlib.import_module(name)
        except InputError as error:
            raise InputError(error.rule, f"{error.value} ({name})", error.remedy) from None
        except (Exception, SystemExit) as error:  # whatever it does when it is executed
            found = f"extensions: {name}: {type(error).__name__}: {error}".splitlines()[0]
            gone = "the path of a file from the folder of the YAML file, or a name that Python finds: PYTHONPATH=FOLDER"
            raise InputError(RULE, found, gone if _missing(error, name) else f"mend {name}") from error


def hashes_of(extensions: Sequence[str]) -> dict[str, str]:
    """By name, the hash of what each says; all files of a package.

    Raises:
        InputError: see `import_extensions`.
    """
    import_extensions(extensions)
    found: dict[str, str] = {}
    for name in extensions:
        path = Path(name if name.endswith(SUFFIX) else sys.modules[name].__file__ or name)
        files = sorted(path.parent.rglob(f"*{SUFFIX}")) if path.name == f"__init__{SUFFIX}" else [path]
        whole = blake3()
        for file in files:
            whole.update(file.read_bytes() if file.suffix == SUFFIX else b"")
        label = Path(name).stem if name.endswith(SUFFIX) else name
        found[label if label not in found else f"{label} {len(found)}"] = whole.hexdigest(length=LENGTH)
    return found


def _file(name: str, folder: Path) -> str:
    return str((folder / Path(name).expanduser()).absolute())


def _import_file(path: Path) -> None:
    data = path.read_bytes()
    digest = blake3(data).hexdigest(length=LENGTH)
    if _hashes.setdefault(str(path), digest) != digest:
        rule = "an extension must stay as it is while a process uses it"
        raise InputError(rule, f"{path} changed", "start the command again")
    if digest in _imported:
        return
    name = f"longreel_extension_{path.stem}_{digest[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, f"{path} ends with {SUFFIX}"
    assert spec.loader is not None, f"{path} ends with {SUFFIX}"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickles name it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name], _hashes[str(path)]
        raise
    _imported[digest] = module


def _missing(error: BaseException, name: str) -> bool:
    """Whether it is the extension itself that is not there."""
    return isinstance(error, FileNotFoundError) or (
        isinstance(error, ImportError) and error.name is not None and f"{name}.".startswith(f"{error.name}.")
    )
