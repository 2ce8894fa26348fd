"""The plain lines of N-Triples, read without making objects of them; the parser gets the others.

<http://example.org/a> <http://example.org/treats> <http://example.org/b> .
<http://example.org/a> <http://www.w3.org/2000/01/rdf-schema#label> "Aspirin"@en .
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vglm.errors import GraphError
from vglm.graph.formats.rdf_guard import Guarded
from vglm.graph.formats.rdf_triples import Triples
from vglm.graph.formats.source import Source
from vglm.graph.limits import shown

_IRI = r"<([^\x00-\x20<>\"{}|^`\\]*)>"
_END = r"[ \t]*\.[ \t]*$"
_LINK = re.compile(rf"^{_IRI}[ \t]+{_IRI}[ \t]+{_IRI}{_END}", re.MULTILINE)
_TEXT = re.compile(
    rf'^{_IRI}[ \t]+{_IRI}[ \t]+"([^"\\\n\r]*)"(?:@([a-zA-Z]{{1,8}}(?:-[a-zA-Z0-9]{{1,8}})*))?{_END}',
    re.MULTILINE,
)
_ABSOLUTE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")


class NTriplesFile(Guarded):
    """A file of which `triples` gets the plain lines, and the parser the others, with empty lines for those."""

    def __init__(self, source: Source, triples: Triples) -> None:
        self._triples = triples
        super().__init__(source)

    def _bytes(self, source: Source) -> Iterator[bytes]:
        for first, block in source.blocks():
            rest, *_ = pieces = _LINK.split(block)
            if len(pieces) > 1:
                fresh = self._triples.add_links(pieces[1::4], pieces[2::4], pieces[3::4])
                self._check(fresh, first, block)
                rest = "".join(pieces[::4])
            if '"' in rest:
                pieces = _TEXT.split(rest)
                fresh = self._triples.add_texts(pieces[1::5], pieces[2::5], pieces[3::5], pieces[4::5])
                self._check(fresh, first, block)
                rest = "".join(pieces[::5])
            yield f"{rest}\n".encode()

    def _check(self, iris: Iterator[str], first: int, block: str) -> None:
        """Raises GraphError for IRIs that have no scheme."""
        for iri in iris:
            if _ABSOLUTE.match(iri) is None:
                line = first + block.count("\n", 0, block.find(f"<{iri}>"))
                raise GraphError(f"{self._name}, line {line}: {shown(iri)} is no absolute IRI")
