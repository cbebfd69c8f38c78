"""`Hosts`: which servers answer, so that a table full of links to a dead one does not wait for each of them.

answers?   no no no | no no no no no | -- -- ... -- no -- -- ...      a file each
tries       3  3  3 |  1  1  1  1  1 |  0  0 ...  0  1  0  0 ...      until one answers
"""

from __future__ import annotations

from collections import Counter

from data.remote.addresses import split_url

IMPATIENT, SILENT = 3, 8  # files in a row without an answer: from then on one try, and none
ASKED_AGAIN = 100  # of so many files of a silent server, one is tried


class Hosts:
    """Of one run."""

    def __init__(self) -> None:
        self._unanswered: Counter[str] = Counter()  # in a row
        self._passed: Counter[str] = Counter()

    def tries(self, url: str, usual: int) -> int:
        """How often to try a file of this URL."""
        host = split_url(url).netloc
        if self._unanswered[host] < IMPATIENT:
            return usual
        if self._unanswered[host] < SILENT:
            return 1
        self._passed[host] += 1
        return int(self._passed[host] % ASKED_AGAIN == 0)

    def note(self, url: str, answered: bool) -> None:
        """What came of a file that was tried."""
        host = split_url(url).netloc
        self._unanswered[host] = 0 if answered else self._unanswered[host] + 1
