"""Words of names and questions, made comparable: Unicode folded, marks kept, no punctuation.

Han characters, kana, and the letters of Thai, Lao, Burmese and Khmer are words of their own, because those
scripts put no spaces between words: a name is found inside a sentence as a run of characters.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache
from typing import NamedTuple

# Words that say nothing alone: an entity is not named by one of them unless it is written like a symbol ("WAS").
_FUNCTION_WORDS = """
    a about above after all also am an and any are as at be because been before being below between both but by
    can could did do does doing down during each every few for from further give had has have having he her here
    hers him his how i if in into is it its just let list many may me might more most much must my name no nor not
    of off on once only or other our out over own please same shall she should show so some such tell than that the
    their them then there these they this those through to too under until up us very was we were what when where
    which while who whom whose why will with within without would yes you your
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}\U00020000-\U0003ffff]")
_MARKS = "\u0300-\u036f"  # combining marks, which are no letters to `re`
_POSSESSIVE = re.compile(f"['\u2019]s(?![\\w{_MARKS}])")
_ASCII_WORD = re.compile(r"[a-z0-9]+")
# Parts of a question that can be folded one by one: a character of those scripts (with the marks of kana), or a run
# of others without spaces and possessives.
_PART = re.compile(
    f"(?P<possessive>{_POSSESSIVE.pattern})|{_UNSPACED_CHARACTER.pattern}[\u3099\u309a]*"
    f"|(?:(?!{_POSSESSIVE.pattern}|{_UNSPACED_CHARACTER.pattern})\\S)+"
)
INFLECTED = 0.9  # least similarity of a word and an inflected form of it
_SENTENCE_END = ".!?;:\u3002\uff01\uff1f"
# Endings that inflection exchanges, in the languages that most names are in; "-" is no ending.
_ENDINGS = """
    -/s -/es -/e -/n -/en -/er -/ed -/ing y/ies is/es us/i um/a on/a a/ae f/ves ex/ices e/ed e/ing ic/ical ed/ion
"""
_INFLECTIONS = frozenset(frozenset(pair.replace("-", "").split("/")) for pair in _ENDINGS.split())


class Word(NamedTuple):
    """A word of a question: folded, where it stands in the text as it was written, and in the how manieth sentence."""

    text: str
    start: int
    end: int
    sentence: int = 0


def folded(text: str) -> str:
    """`text` without case and without differences of encoding; possessives gone, words apart by anything but
    letters, digits and marks."""
    if text.isascii():
        text = text.lower()
    else:
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        text = _UNSPACED_CHARACTER.sub(r" \g<0> ", text)
    return _POSSESSIVE.sub("", text).replace("_", " ")


def words(text: str, separator: str = "") -> list[str]:
    """The folded words of a text; a character that is given as `separator` is a word, too."""
    plain = folded(text)
    pattern = _ASCII_WORD if plain.isascii() else word_pattern()
    if separator:
        pattern = re.compile(f"{pattern.pattern}|{re.escape(separator)}")
    found: list[str] = pattern.findall(plain)
    return found


def question_words(question: str, limit: int) -> list[Word]:
    """The first `limit` words of a question with their places; the same words that `words` gives."""
    found: list[Word] = []
    sentence = 0
    for part in _PART.finditer(question):
        if part["possessive"] is None:
            found += _placed(part[0], part.start(), sentence)
        sentence += part[0][-1] in _SENTENCE_END
        if len(found) >= limit:
            break
    return found[:limit]


def _placed(part: str, offset: int, sentence: int) -> list[Word]:
    """The words of a part; where folding changes its length, each has the place of the whole part."""
    plain = folded(part)
    if len(part) != len(plain):
        return [Word(text, offset, offset + len(part), sentence) for text in words(part)]
    pattern = _ASCII_WORD if plain.isascii() else word_pattern()
    return [Word(m[0], offset + m.start(), offset + m.end(), sentence) for m in pattern.finditer(plain)]


@cache
def word_pattern() -> re.Pattern[str]:
    """Runs of letters, digits and combining marks (which are no letters to `re`)."""
    marks = [c for c in range(0x300, min(sys.maxunicode, 0x20000)) if unicodedata.category(chr(c))[0] == "M"]
    ranges: list[list[int]] = []
    for code in marks:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    inside = "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
    return re.compile(f"[\\w{inside}]+")


def similarity(one: str, other: str) -> float:
    """How alike two folded words are, 0..1: 1 less the share of letters to insert, drop, replace or swap.

    Words of which one is an inflection of the other count as at least 0.9.
    """
    if one == other:
        return 1.0
    shortest = min(len(one), len(other))
    prefix = 0
    while prefix < shortest and one[prefix] == other[prefix]:
        prefix += 1
    alike = 1 - _distance(one[prefix:], other[prefix:]) / max(len(one), len(other))
    if prefix >= 3:
        for back in range(3):  # "thrombosis", "thromboses": the ending begins before the words differ
            if frozenset((one[prefix - back :], other[prefix - back :])) in _INFLECTIONS:
                return max(INFLECTED, alike)
    return alike


def _distance(one: str, other: str) -> int:
    """Edits between two words, a swap of neighbours being one (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        last, before, row = before, row, [i] + [0] * len(other)
        for j, b in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, last[j - 2] + 1)
            row[j] = cost
    return row[-1]
