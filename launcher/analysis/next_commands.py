"""What to type after an incident, with nothing left to fill in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.analysis.incident import Incident, State
from launcher.config import proposed_commands
from launcher.config.run_yaml import parse_yaml, read_run
from launcher.core.run_folder import RunFolder
from launcher.core.run_records import Steps
from parallel import shell
from parallel.errors import InputError


def settings_of(folder: RunFolder) -> Mapping[str, Any]:
    """The run's settings as plain values; none if they cannot be read."""
    try:
        settings, _ = parse_yaml(read_run(folder.config), folder.config.name)
    except InputError:
        return {}
    return settings if isinstance(settings, dict) else {}


def with_commands(one: Incident, run: Path, settings: Mapping[str, Any], steps: Steps) -> Incident:
    """Its remedy with nothing left to fill in."""
    data, optimizer = settings.get("data"), settings.get("optimizer")
    dataset = data.get("dataset") if isinstance(data, dict) else None
    folders = list(map(str, dataset)) if isinstance(dataset, dict) else [dataset] if isinstance(dataset, str) else []
    if folders and proposed_commands.CHECK in one.remedy:
        mend = " && ".join(shell.join(["longreel", "data", "check", folder, "--repair"]) for folder in folders)
        one.remedy, one.commands = one.remedy.replace(proposed_commands.CHECK, mend), [mend]
    if one.cause == "anomaly" and not one.on_purpose:
        rate = optimizer.get("learning_rate") if isinstance(optimizer, dict) else None
        one.remedy, one.commands = proposed_commands.LOWER_RATE, [proposed_commands.slower(run, rate)]
        if one.step is not None and one.step in steps.column("step"):  # else its samples are not written down
            one.commands.append(shell.join(["longreel", "data", "audit", str(run), "--step", str(one.step)]))
    return one


def next_commands(
    run: Path, state: State, saved: bool, asked: int, incidents: Sequence[Incident]
) -> Iterator[tuple[str, str]]:
    """Each with a reason, the first is the one to begin with."""
    goes_on = f"goes on from its last checkpoint to step {asked}" if saved else "starts again"
    if state == "running":
        yield shell.join(["tail", "-f", str(run / "events.jsonl")]), "it goes on; this is what it records"
        return
    if state == "done":
        yield shell.join(["longreel", "sample", str(run)]), "videos from its last checkpoint"
        yield shell.join(["longreel", "report", str(run)]), "one page about it"
        return
    proposed = incidents[-1].commands if state == "failed" and incidents else []
    for command in proposed:
        if not command.startswith("longreel train"):
            yield command, next((reason for kind, reason in REASONS.items() if command.startswith(kind)), "first")
            continue
        yield command, f"{goes_on}, with what is proposed above"
        if saved and incidents[-1].cause == "anomaly":
            elsewhere = proposed_commands.setting("out", f"{run}-again")
            yield f"{command} {elsewhere}", "or from the first step, should the checkpoint be spoiled already"
    if not any(command.startswith("longreel train") for command in proposed):
        yield proposed_commands.train(run), goes_on


REASONS = {
    "longreel data audit": "the samples of that step",
    "longreel data check": "first: what is broken there, and what can be mended",
    "longreel dryrun": "first: what that saves",
}
