"""Draw docs/demo.svg: what `make demo` prints, recorded from a real run, with two candidates explained and compared."""

import re
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.terminal_theme import MONOKAI
from rich.text import Text

from vglm import demo, demo_view
from vglm.demo_ask import Answer
from vglm.graph.text import one_line


class Recorded(demo_view.View):
    """The demo's view on a console that records; an answer's pieces become one wrapped paragraph."""

    last: Console

    def __init__(self) -> None:
        Recorded.last = Console(record=True, width=110, highlight=False)
        super().__init__(Recorded.last)
        self._answer = ""

    def piece(self, text: str) -> None:
        self._answer += text

    def asking(self, answer: Answer) -> None:
        self._answer = one_line(answer.lead)
        self.console.print(f"[bold]{escape(one_line(answer.title))}[/]")

    def answered(self, answer: Answer) -> None:
        self.console.print(Text(self._answer), end="")
        super().answered(answer)


if __name__ == "__main__":
    demo_view.View = Recorded  # type: ignore[misc]
    demo.EXPLAINED = 2
    demo.run(demo.Options(None, None, None, "open-autoglm-v1", 5, None, True, False))
    svg = Recorded.last.export_svg(title="make demo", theme=MONOKAI)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # no fonts from elsewhere
    Path(__file__).with_name("demo.svg").write_text(svg, encoding="utf-8")
