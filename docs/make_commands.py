"""Write docs/commands.md: every command and option, as the command line itself knows them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from vglm.cli import app

FILE = Path(__file__).with_name("commands.md")
_HEAD = """\
# Commands

Every command and option, written by `python docs/make_commands.py` from the command line itself.
`vglm COMMAND --help` shows the same, with examples.
"""


def commands(command: Any = None, path: tuple[str, ...] = ("vglm",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with its path as in ("vglm", "bench", "serve")."""
    command = typer.main.get_command(app) if command is None else command
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from commands(inner, (*path, name))


def options(command: Any) -> list[Any]:
    """The options of a command."""
    return [
        parameter
        for parameter in command.params
        if parameter.param_type_name == "option" and "--help" not in parameter.opts
    ]


def text() -> str:
    """The whole document."""
    return _HEAD + "".join(_section(" ".join(path), command) for path, command in commands())


def _section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join(
        [name, *(p.make_metavar(command.make_context(name, [], resilient_parsing=True)) for p in arguments)]
    )
    lines = ["", f"## `{usage}`", "", " ".join((command.help or "").split()), ""]
    lines += [f"- `{p.human_readable_name}`: {p.help}" for p in arguments if p.help]
    lines += ["", *_table(options(command))] if options(command) else []
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _table(rows: list[Any]) -> list[str]:
    lines = ["| option | default | what |", "|---|---|---|"]
    for option in rows:
        names = ", ".join(option.opts)
        if option.secondary_opts:
            names += " / " + ", ".join(option.secondary_opts)
        if not option.is_flag:
            names += f" {option.metavar or option.type.name.upper().removesuffix(' RANGE')}"
        cells = [f"`{names}`", _default(option), (option.help or "") + _variable(option)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _default(option: Any) -> str:
    value = option.default
    if value is None:
        return ""
    if option.is_flag and option.secondary_opts:
        return "on" if value else "off"
    if option.is_flag or callable(value) or value in ("", (), []):
        return ""
    return f"`{value}`"


def _variable(option: Any) -> str:
    return f" Or the variable `{option.envvar}`." if option.envvar else ""


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
