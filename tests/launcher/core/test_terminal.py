"""What others wrote cannot command the terminal, and what is proposed to type is what it says."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

import launcher
from launcher.core.terminal import Console, in_a_line, visible

HOSTILE = {  # Rich itself takes \a, \b, \v, \f and \r out of what it is given
    "\x1b]0;title\x07": r"\x1b]0;title",
    "\x1b[2J\x1b[1;1Hdone": r"\x1b[2J\x1b[1;1Hdone",
    "loss 9\rloss 1": "loss 9loss 1",
    "a\x08\x08b\x7f\x00": r"ab\x7f\x00",
    "\x9b31m\x85\u2028": r"\x9b31m\x85\u2028",
    "gpj\u202e.exe\u2066": r"gpj\u202e.exe\u2066",
    "caf\udce9.mp4": r"caf\udce9.mp4",
    "tag\U000e0041": r"tag\U000e0041",
}


@pytest.mark.parametrize(("text", "shown"), HOSTILE.items())
def test_nothing_that_is_printed_commands_the_terminal(text: str, shown: str) -> None:
    """As a string, styled, in a cell of a table; on a terminal with colors, of which only ours come through."""
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system="truecolor", highlight=False)
    table = Table("what", box=None)
    table.add_row(text)
    for thing in (text, Text(text, style="red"), table):
        console.print(thing)
    said = file.getvalue()
    for sign in ("\x1b[31m", "\x1b[0m", "\x1b[1m"):  # Rich's own
        said = said.replace(sign, "")
    whole = visible(text)
    assert said.splitlines() == [whole, shown, f" {'what'.ljust(len(whole))} ", f" {whole} "]
    assert said.isascii()


def test_what_goes_out_without_a_table() -> None:
    """Logs of jobs, and errors before there is a console."""
    assert {text: visible(text) for text in HOSTILE} == {
        **HOSTILE,
        "\x1b]0;title\x07": r"\x1b]0;title\x07",
        "loss 9\rloss 1": r"loss 9\rloss 1",
        "a\x08\x08b\x7f\x00": r"a\x08\x08b\x7f\x00",
    }


def test_words_of_any_language_and_lines_of_ours_stay() -> None:
    kept = "Ünïcode: 日本語 עברית العربية 👩‍👩‍👧 a\u00a0b\u3000c\n\tnext"
    assert visible(kept) == kept
    assert visible("a\r\nb") == "a\nb"
    assert in_a_line("a.mp4\nerror: all is lost\t1") == r"a.mp4\nerror: all is lost\t1"


@pytest.mark.parametrize("path", ["runs/[/b]", "runs/[/]x", "a[/red]", "runs/:bug:", "a:smile:b"])
def test_a_path_that_is_no_markup_is_printed_as_it_is(path: str) -> None:
    file = io.StringIO()
    Console(file=file, width=80).print(path)
    assert file.getvalue() == f"{path}\n"


OURS = ("finding.py", "reference_page.py")  # print what no other hand wrote
WHOLE = ("json.dumps(", "as_json(", "visible(")


def test_no_command_prints_past_it() -> None:
    """Rich's own console stands in annotations alone, and what is printed without one is made visible or JSON."""
    for file in Path(launcher.__file__).parent.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        imports = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module == "rich.console"]
        of_rich = any(name.name == "Console" for node in imports for name in node.names)
        calls = [(n.func.id, n.args) for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        assert not (of_rich and "Console" in dict(calls)), f"{file.name} makes a console of Rich"
        printed = [ast.unparse(args[0]) for name, args in calls if name == "print" and args]
        past = [said for said in printed if not said.startswith(WHOLE)]
        assert not past or file.name in OURS, (file.name, past)
