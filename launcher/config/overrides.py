"""Commands that take settings of a run as `key=value`, and say so to who writes them as options.

longreel train run.yaml --steps 10     error: ... remedy: write steps=10
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from launcher.config.run_yaml import parse_yaml, read_run
from parallel.errors import InputError

CONTEXT = {"allow_interspersed_args": True}


class RunCommand(TyperCommand):
    """A command whose arguments are a run and its overrides."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As of typer; raises InputError for an option that is a setting of a run."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            name = getattr(error, "option_name", None)  # of NoSuchOption, whose place in typer and click has changed
            told = setting_meant(str(name), given) if name else None
            if told is None:
                raise
            raise InputError("settings of a run are key=value", *told) from None

    def invoke(self, ctx: Any) -> Any:
        """As of typer; a run file that is none is refused before torch is loaded, which takes seconds."""
        run = ctx.params.get("run")
        if isinstance(run, Path) and not run.is_dir():
            parse_yaml(read_run(run), str(run))
        return super().invoke(ctx)


def setting_meant(option: str, given: list[str]) -> tuple[str, str] | None:
    """What was found and what to write, for an option that no command has; None if it is no setting either.

    Args:
        option: with its dashes.
        given: all arguments, the option among them.
    """
    from launcher.config.config_errors import known_keys, nearest_key
    from launcher.config.foreign_keys import meaning_of

    at = next((n for n, one in enumerate(given) if one == option or one.startswith(f"{option}=")), None)
    if at is None:
        return None
    after = given[at + 1] if at + 1 < len(given) else ""
    value = given[at].partition("=")[2] or ("" if after.startswith("--") or "=" in after else after)
    found = given[at] if "=" in given[at] or not value else f"{option} {value}"
    key, known = option.lstrip("-").replace("-", "_"), known_keys()
    meaning = meaning_of(key)
    if key in known or meaning is None:
        near = key if key in known else nearest_key(key, known)
        return (found, f"write {near}={value or 'VALUE'}") if near else None
    if len(meaning.keys) == 1 and not meaning.why:
        return found, f"write {meaning.keys[0]}={value or 'VALUE'}"
    keys = " ".join(f"{one}=VALUE" for one in meaning.keys)
    return found, f"write {keys} ({meaning.why})" if meaning.why and keys else f"write {keys}" if keys else meaning.why
