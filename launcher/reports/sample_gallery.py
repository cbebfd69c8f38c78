"""The samples of a report: the newest videos and contact sheets of a run, as base64, up to a limit of bytes."""

from __future__ import annotations

import base64
from pathlib import Path

from launcher.core.run_folder import RunFolder
from launcher.core.text import counted, escape_html, size_text
from launcher.reports.recorded_run import Run, json_of
from parallel import shell

MOST_SAMPLES = 24  # newest videos on the page


MOST_SHEETS = 4  # newest contact sheets


MOST_BYTES = 64 << 20  # of videos and sheets together; what is beyond is named


def gallery(run: Run) -> str:
    """The section of the page; what is left out is named in it."""
    folder = RunFolder(run.root).samples
    videos, sheets = (_newest_first(folder, pattern) for pattern in ("*.mp4", "*.png"))
    if not videos and not sheets:
        command = escape_html(shell.join(["longreel", "sample", str(run.root)]))
        return f"<h2>Samples</h2><p class=soft>no samples yet: <code>{command}</code></p>"
    capacity = _Capacity(MOST_BYTES)
    shown = "".join(_video(path, capacity) for path in videos[:MOST_SAMPLES])
    pictures = "".join(_sheet(path, capacity) for path in sheets[:MOST_SHEETS])
    left_out = []
    for what, there, most in (("video", videos, MOST_SAMPLES), ("contact sheet", sheets, MOST_SHEETS)):
        if len(there) > most:
            left_out.append(counted(len(there) - most, f"older {what}"))
    if capacity.refused:
        names = ", ".join(capacity.refused)
        left_out.append(f"what does not fit into {size_text(MOST_BYTES)} or cannot be read ({names})")
    note = f"<p class=soft>Left out: {escape_html('; '.join(left_out))}. They are in samples/.</p>" if left_out else ""
    return f"<h2>Samples</h2><div class=gallery>{shown}</div>{note}{pictures}"


class _Capacity:
    """How much may still be put into the page, and what was not."""

    def __init__(self, left: int) -> None:
        self.left, self.refused = left, list[str]()

    def take(self, path: Path) -> str | None:
        """The file as base64."""
        try:
            if path.stat().st_size <= self.left:
                data = path.read_bytes()
                self.left -= len(data)
                return base64.b64encode(data).decode()
        except OSError:
            pass  # gone meanwhile: it is named like one that is too large
        self.refused.append(path.name)
        return None


def _newest_first(folder: Path, pattern: str) -> list[Path]:
    found = []
    for path in folder.glob(pattern):
        try:
            found.append((-path.stat().st_mtime, path))
        except OSError:
            continue  # gone meanwhile
    return [path for _, path in sorted(found)]


def _video(path: Path, capacity: _Capacity) -> str:
    data = capacity.take(path)
    if data is None:
        return ""
    made = json_of(path.with_suffix(".json"))
    prompt = escape_html(str(made.get("prompt", path.name)))
    words = (("seed", "seed"), ("steps", "steps"), ("guidance", "guidance"), ("checkpoint_step", "from step"))
    given: dict[str, object] = made["given"] if isinstance(made.get("given"), dict) else {}
    told = [f"{word} {made[key]}" for key, word in words if key in made]
    how = escape_html(", ".join([*told, *(f"{task} {Path(str(file)).name}" for task, file in given.items())]))
    return (
        f'<figure class=card><video autoplay loop muted playsinline src="data:video/mp4;base64,{data}"></video>'
        f"<figcaption>{prompt}<br><span class=soft>{how or 'no .json beside it'}</span></figcaption></figure>"
    )


def _sheet(path: Path, capacity: _Capacity) -> str:
    data = capacity.take(path)
    if data is None:
        return ""
    name = escape_html(path.name)
    return (
        f'<figure class="card sheet"><div class=scroll><img alt="contact sheet {name}" '
        f'src="data:image/png;base64,{data}"></div><figcaption class=soft>{name}</figcaption></figure>'
    )
