"""The command `longreel why`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from launcher.analysis.event_timeline import count_of
from launcher.cli.options import Json
from launcher.core.terminal import Console
from parallel import shell

if TYPE_CHECKING:
    from launcher.analysis.incident import Incident
    from launcher.analysis.incidents import Story

SHOWN_EVENTS, SHOWN_INCIDENTS = 24, 5
STATES = {
    "running": ("green", "is running"),
    "done": ("green", "is done"),
    "stopped": ("yellow", "was stopped"),
    "failed": ("red", "failed"),
    "vanished": ("red", "ended without a word"),
}
BAD = ("failure", "hang", "differs")
SUSPICIOUS = ("unsaved", "fallback", "anomaly", "unreadable", "mesh", "gap", "fault")
CAUSES = {
    "killed": "killed",
    "memory": "killed for memory",
    "hang": "a hang",
    "exception": "an exception",
    "anomaly": "numbers that are not finite, or spike",
    "full": "a full disk",
    "store": "storage",
    "data": "bad data",
    "node": "a machine that went away",
    "link": "a link that was cut",
    "stopped": "a request",
    "input": "wrong input",
}


def why(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    all_: Annotated[bool, typer.Option("--all", help="Print every event and incident, not only the last.")] = False,
    json_: Json = False,
) -> None:
    """Explain what happened to a run: which rank failed, where, when and why, and what to type next.

    Example: longreel why runs/mine
    """
    from launcher.analysis.incidents import why as read

    story = read(run)
    if json_:
        print(json.dumps({**asdict(story), "run": str(story.run)}))
        return
    console = Console()
    console.print(render(story, all_), highlight=False)
    for line in advice(story):
        console.print(line, highlight=False, soft_wrap=True)


def render(story: Story, everything: bool = False) -> RenderableType:
    """A story for a person."""
    parts: list[RenderableType] = [_headline(story), ""]
    cut = None if everything else -SHOWN_EVENTS
    events = story.timeline[cut:]
    parts.append(_timeline(story, len(story.timeline) - len(events)))
    shown = story.incidents if everything else story.incidents[-SHOWN_INCIDENTS:]
    more = len(story.incidents) - len(shown)
    if more:
        parts += [
            "",
            Text(f"{more} older incidents: {shell.join(['longreel', 'why', str(story.run), '--all'])}", style="dim"),
        ]
    for number, incident in enumerate(shown, more + 1):
        parts += ["", *_paragraph(number, incident)]
    if story.broken:
        parts += ["", Text(f"{story.broken:,} lines of its records are none, and were left out", style="yellow")]
    if not story.incidents:
        parts += ["", Text("nothing went wrong", style="green")]
    return Group(*parts)


def advice(story: Story) -> Iterator[Text]:
    """What to type next; lines that no terminal breaks, so that they can be copied."""
    yield Text("\nnext", style="bold")
    width = max((len(command) for command, _ in story.next), default=0)
    for command, reason in story.next:
        yield Text.assemble("  ", (command.ljust(width), "bold cyan"), "   ", (reason, "dim"))


def _headline(story: Story) -> Text:
    colour, words = STATES[story.state]
    text = Text(f"{story.run} ", style="bold")
    text.append(words, style=f"bold {colour}")
    text.append(f": step {story.step} of {story.steps}, {count_of(story.attempts, 'start')} of its ranks")
    if story.incidents:
        last = story.incidents[-1]
        text.append(f", {count_of(len(story.incidents), 'incident')}; the last: ")
        text.append(CAUSES.get(last.cause, last.cause), style=colour)
    return text


def _timeline(story: Story, left_out: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    begin = story.timeline[0][0] if story.timeline else 0.0
    if left_out:
        table.add_row("", "", "", Text(f"... {left_out} older events", style="dim"))
    for when, name, what in story.timeline[left_out:]:
        style = "red" if name in BAD else "yellow" if name in SUSPICIOUS else ""
        clock = datetime.fromtimestamp(when).strftime("%d %b %H:%M:%S")
        table.add_row(clock, _since(when - begin), Text(name, style=style), Text(what, style=style))
    return table


def _paragraph(number: int, incident: Incident) -> Iterator[RenderableType]:
    title = Text(
        f"{number}. {CAUSES.get(incident.cause, incident.cause)}", style="bold red" if incident.ended else "bold"
    )
    if incident.on_purpose:
        title.append("  (done on purpose, by the fault kit)", style="magenta")
    yield title
    yield Padding(Text(f"{incident.where} {incident.what}".strip()), (0, 0, 0, 3))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    clock = datetime.fromtimestamp(incident.time).strftime("%d %b %H:%M:%S")
    table.add_row("when", Text(f"{clock}{f', {incident.when}' if incident.when else ''}"))
    if incident.evidence:
        table.add_row("evidence", Text("\n".join(incident.evidence)))
    if incident.after:
        table.add_row("then", Text(incident.after))
    typed = [] if incident.ended else incident.commands  # those of the last are told below
    if incident.remedy or typed:
        table.add_row("do", Text("\n".join([incident.remedy, *typed])))
    yield Padding(table, (0, 0, 0, 3))


def _since(seconds: float) -> str:
    minutes, rest = divmod(max(0.0, seconds), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"+{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"+{minutes}:{rest:04.1f}"
