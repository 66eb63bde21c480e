"""Counts the files of a source that are not read, by the ending of their names."""

import re
from collections import Counter
from collections.abc import Mapping
from posixpath import basename, splitext

NO_ENDING, LINKS, OTHERS = "without an ending", "not followed as links", "with other endings"
MOST_ENDINGS = 50
PLAIN_ENDING = re.compile(r"\.[\w-]{1,20}")
"""Other endings are shown nowhere: names of files come from other people."""


class Skipped:
    """The numbers of files that a listing has passed over. It holds few numbers, however many files there are.

    `all_files` says that the listing was of files in folders, and passed over all of them.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.all_files = False

    def add(self, name: str) -> None:
        """Count a file."""
        ending = splitext(basename(name))[1].lower()
        self._count(NO_ENDING if not ending else ending if PLAIN_ENDING.fullmatch(ending) else OTHERS)

    def add_link(self) -> None:
        """Count a link that leads in a circle, to a folder that is listed already, or nowhere."""
        self._count(LINKS)

    def _count(self, label: str) -> None:
        is_known = label in self.counts or len(self.counts) < MOST_ENDINGS
        self.counts[label if is_known else OTHERS] += 1


def not_read(counts: Mapping[str, int]) -> str:
    """The counts as a phrase, the most first: `12 .heic, 3 .txt`; empty if there are none."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{count:,} {ending}" for ending, count in ordered)
