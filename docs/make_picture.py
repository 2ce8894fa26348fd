"""Draw docs/demo.svg: what `make demo` prints, recorded from a real run, with one candidate explained."""

import re
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from vglm import demo, demo_view


class Recorded(demo_view.View):
    """The demo's view on a console that records; an answer's pieces become one wrapped paragraph."""

    last: Console

    def __init__(self) -> None:
        Recorded.last = Console(record=True, width=110, highlight=False)
        super().__init__(Recorded.last)
        self._answer = ""

    def piece(self, text: str) -> None:
        self._answer += text

    def answered(self, explanation: demo.Explanation) -> None:
        self.console.print(Text(self._answer), end="")
        self._answer = ""
        super().answered(explanation)


if __name__ == "__main__":
    demo_view.View = Recorded  # type: ignore[misc]
    demo.EXPLAINED = 1
    demo.run(demo.Options(None, None, None, "smollm2-135m-instruct", 5, 96, None, True, False))
    svg = Recorded.last.export_svg(title="make demo", theme=MONOKAI)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # no fonts from elsewhere
    Path(__file__).with_name("demo.svg").write_text(svg, encoding="utf-8")
