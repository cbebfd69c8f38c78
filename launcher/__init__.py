"""Jobs: the command line, the rank, checkpoints, and who starts, watches and restarts the ranks."""

from importlib.util import find_spec
from pathlib import Path


def _check_neighbours() -> None:
    """`data`, `models` and `parallel` are common names: refuse to run with somebody else's."""
    home = Path(__file__).resolve().parent.parent
    for name in ("data", "models", "parallel"):
        spec = find_spec(name)
        found = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if found != home / name:
            raise ImportError(
                f"longreel's package {name!r} lies in {home / name}, but Python finds {found}: fix sys.path"
            )


_check_neighbours()
