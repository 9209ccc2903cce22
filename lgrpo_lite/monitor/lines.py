"""The lines of a growing JSONL file, at a cost that does not grow with it: its end whole, the rest in
samples.
"""

import os
from pathlib import Path
from typing import Any, BinaryIO

from lgrpo_lite.machine.disk import objects, opened

WHOLE = 2 * 2**20  # bytes at the end of a file that are read in full; a line of metrics.jsonl has 1 to 2 KB
# bytes at the beginning that are read in full: the first evaluation, what was settled at the start
HEAD = 2**16
SAMPLES = 300  # lines read of what lies between


class Lines:
    """Follows one file: `read()` returns what is new. A file that shrank or was replaced is read anew.

    `whole`: nothing is left out. Half a last line waits for its rest; lines that are no JSON objects are
    passed over.
    """

    def __init__(self, path: Path, *, whole: bool = False):
        self.path, self.whole = path, whole
        # from before the part that is read in full, in order, with gaps
        self.sparse: list[dict[str, Any]] = []
        self._offset, self._inode = 0, None

    def read(self) -> tuple[list[dict[str, Any]], bool] | None:
        """(new rows, whether they replace all that was read before); None while nothing changed."""
        try:
            with opened(self.path) as file:
                stat = os.fstat(file.fileno())
                size = stat.st_size
                inode = (stat.st_ino, stat.st_dev)
                anew = inode != self._inode or size < self._offset
                if not anew and size == self._offset:
                    return None
                if anew:
                    self._inode = inode
                    self._offset = 0 if self.whole else self._skip(file, size)
                file.seek(self._offset)
                fresh = file.read(max(0, size - self._offset))
        except OSError:
            return None
        end = fresh.rfind(b"\n") + 1
        self._offset += end
        rows = list(objects(fresh[:end].splitlines()))
        return (rows, anew) if rows or anew else None

    def _skip(self, file: BinaryIO, size: int) -> int:
        """Reads the beginning and samples of the middle into `sparse`; where the part to read in full
        begins.
        """
        self.sparse = []
        if size <= WHOLE + HEAD:
            return 0
        head = file.read(HEAD)
        head = head[: head.rfind(b"\n") + 1]
        end = _line_after(file, size - WHOLE)
        lines = head.splitlines()
        read_to = len(head)
        for i in range(SAMPLES):
            begin = _line_after(file, len(head) + i * (end - len(head)) // SAMPLES)
            if read_to <= begin < end:
                file.seek(begin)
                lines.append(file.readline())
                read_to = file.tell()
        self.sparse = list(objects(lines))
        return end


def _line_after(file: BinaryIO, offset: int) -> int:
    """Where the first line that begins at or after `offset` begins."""
    file.seek(max(0, offset - 1))
    file.readline()
    return file.tell()
