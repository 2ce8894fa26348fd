"""The documents against the command line: every option is told of, what is told of exists, and links lead somewhere."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKE: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "make_commands.py"))
COMMANDS: dict[str, Any] = {" ".join(path): command for path, command in MAKE["commands"]()}


def names(command: Any) -> set[str]:
    """Every way to write an option of a command."""
    return {"--help", "-h"} | {n for o in MAKE["options"](command) for n in (*o.opts, *o.secondary_opts)}


def test_the_reference_is_the_command_line_s_own() -> None:
    assert MAKE["FILE"].read_text() == MAKE["text"](), "run: python docs/make_commands.py"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_the_documents(command: str) -> None:
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    for option in MAKE["options"](COMMANDS[command]):
        long = [name for name in (*option.opts, *option.secondary_opts) if name.startswith("--")]
        assert any(re.search(rf"{name}(?![\w-])", text) for name in long), f"{command} {long} is nowhere"
        assert option.help, f"{command} {long} has no help"


def test_what_is_particular_to_the_server_is_explained() -> None:
    """Beyond the reference: in the two documents that are about it."""
    text = "".join((ROOT / "docs" / name).read_text() for name in ("serving.md", "operations.md"))
    missing = [
        name
        for option in MAKE["options"](COMMANDS["vglm serve"])
        if not any(re.search(rf"{name}(?![\w-])", text) for name in (*option.opts, *option.secondary_opts))
        for name in option.opts
    ]
    assert missing == []


def shown_commands(document: Path) -> list[str]:
    """Lines of code that run vglm, continued lines joined; several commands may stand side by side."""
    text = document.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("    ") or re.match(r"vglm \w", line)]
    found = [part for line in lines for part in re.findall(r"(?:^|\s)(vglm [a-z].*?)(?=\s{3,}|$)", line)]
    return found + re.findall(r"`(vglm [a-z][^`]*)`", text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_commands_that_are_shown_exist(document: Path) -> None:
    for shown in shown_commands(document):
        words = shlex.split(shown, comments=True)
        name = max((n for n in COMMANDS if words[: n.count(" ") + 1] == n.split()), key=len, default=None)
        if name is None:
            assert any(n.startswith(f"{' '.join(words[:2])} ") for n in COMMANDS), f"no command: {shown}"
            continue
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        assert options <= names(COMMANDS[name]), shown


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    local = [target.split("#")[0] for target in targets if not re.match(r"https?://|#", target)]
    missing = [target for target in local if not (document.parent / target).exists()]
    assert missing == []


def test_the_readme_leads_to_every_document() -> None:
    text = (ROOT / "README.md").read_text()
    assert [d.name for d in DOCUMENTS[1:] if f"(docs/{d.name})" not in text] == []
