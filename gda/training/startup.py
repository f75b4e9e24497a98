"""How long a process took to its first training step, and with what."""

import os
import time
from pathlib import Path


class Startup:
    """A stopwatch that begins with the process itself, before any Python.

    Marks end sections: ``mark("imports")`` says that what lies behind the mark before was imports.

    Attributes:
        is_told: Whether the split has been told; what comes later is no start.
    """

    def __init__(self) -> None:
        self.is_told = False
        self._sections: list[tuple[str, float]] = []
        self._last = time.monotonic() - _age_of_process()

    def mark(self, section: str) -> None:
        """Ends a section; later marks of the same name are left out."""
        now = time.monotonic()
        if all(name != section for name, _ in self._sections):
            self._sections.append((section, now - self._last))
        self._last = now

    def in_words(self) -> str:
        """Returns e.g. ``4.1 s: 3.0 s imports, 0.4 s checks, 0.7 s data and models``."""
        total = sum(seconds for _, seconds in self._sections)
        split = ", ".join(f"{seconds:.1f} s {name}" for name, seconds in self._sections)
        return f"{total:.1f} s: {split}"


def _age_of_process() -> float:
    """Returns the seconds since the kernel started this process; 0 where it does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = float(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, float(Path("/proc/uptime").read_text().split()[0]) - began)
    except (OSError, ValueError, IndexError):
        return 0.0
