"""docs/settings.md: what a begun run makes of another value of each key, written from what the keys declare.

python -m launcher.config.reference_page > docs/settings.md
"""

from __future__ import annotations

from launcher.config.config_schema import keys
from parallel.setting_effects import Effect

HEAD = """\
# What a begun run makes of another setting

Every key declares, beside its type, what changes with it (`parallel/setting_effects.py`). What a resume refuses, what
it tells and how exactly it compares the steps that it does again (docs/checkpoints.md) follow from that word, and so
does this page: `python -m launcher.config.reference_page > docs/settings.md`.
"""
RESUMES = {
    Effect.STATE: "is refused: set it back, or another run with `out=FOLDER`",
    Effect.CONTENT: "goes on, if the same lies at the other path; another content is refused",
    Effect.DATA: "is refused in a segment that has begun, with the `data.segments=[...]` that does it from here on",
    Effect.NUMBERS: "goes on and tells; steps done again are not compared",
    Effect.UPDATE: "goes on and tells; the first step that is done again is compared, those after it are not",
    Effect.RATE: "goes on and tells both rates, if they differ; steps of the same rate are compared",
    Effect.ROUNDING: "goes on and tells; steps done again are compared to the tolerance of the dtype",
    Effect.MEMORY: "goes on and tells; steps done again are compared bit by bit",
    Effect.NOTHING: "goes on; steps done again are compared bit by bit",
}


def page() -> str:
    """The whole of it."""
    parts = [HEAD]
    for effect in Effect:
        names = dict.fromkeys(key.name for key in keys() if key.effect is effect)
        listed = ", ".join(f"`{name.replace('.*.', '[].')}`" for name in names)
        parts.append(f"## {effect.value[0].upper()}{effect.value[1:]}\n\nA resume {RESUMES[effect]}.\n\n{listed}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
