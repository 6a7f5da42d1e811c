"""Phrases in a text: compared word by word, all in one reading, whatever their number."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

# Chinese has no spaces, so each character is a word. Hyphens and apostrophes do not part the words of a
# phrase; any other mark is a word of its own, so a phrase does not reach into the next sentence.
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_WORD = re.compile(rf"[{_HAN}]|[^\W_{_HAN}]+|[^\w\s'’‘\-‐‑–—]")


def words_of(text: str) -> list[str]:
    """Cut a text into words, without regard to width, case and spacing."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def key(phrase: str) -> str:
    """Write a phrase in the form in which it is found: its words with a space between."""
    return " ".join(words_of(phrase))


class Phrases:
    """Phrases as one tree of words."""

    def __init__(self, phrases: Iterable[str]) -> None:
        self._root: dict[str, Any] = {}
        for phrase in phrases:
            node = self._root
            for word in words_of(phrase):
                node = node.setdefault(word, {})
            node[""] = key(phrase)

    def found_in(self, text: str | None) -> frozenset[str]:
        """Give the keys of the phrases that a text contains."""
        if not text or not self._root:
            return frozenset()
        words, found = words_of(text), set()
        for start, first in enumerate(words):
            node, following = self._root.get(first), start + 1
            while node is not None:
                if "" in node:
                    found.add(node[""])
                node = node.get(words[following]) if following < len(words) else None
                following += 1
        return frozenset(found)
