"""Progress for terminals and pods' logs: count, share, rate, time left and the latest figures."""

from __future__ import annotations

import sys
import time
from types import TracebackType

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_REDRAWS = 0.2


def seconds_as_text(seconds: float) -> str:
    """Formats a duration: ``8s``, ``3m05s``, ``2h07m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """Reports on something long to standard error: a line that is redrawn in a terminal, else a line every 5 seconds.

    Args:
        what: What is being done, as in ``"encode passages"``.
        total: How many units there are; None where nobody knows yet.
        unit: The unit, in the plural.
        done: Units that an earlier, interrupted run already did.
        quiet: Print nothing (ranks other than 0).

    Example:
        >>> with Progress("read", total=2, unit="lines", quiet=True) as progress:
        ...     progress.update(2, loss=0.5)
    """

    def __init__(
        self, what: str, total: int | None = None, unit: str = "items", *, done: int = 0, quiet: bool = False
    ) -> None:
        self.what, self.total, self.unit, self.quiet = what, total, unit, quiet
        self.done = self._done_before = done
        self._figures: dict[str, float | str] = {}
        self._terminal, self._said = sys.stderr.isatty(), False
        self._started = self._shown = time.monotonic()

    def update(self, units: int = 1, **figures: float | str) -> None:
        """Adds `units` to the count; `figures` (loss, learning rate, …) are shown behind the rate."""
        self.done += units
        self._figures.update(figures)
        self._said = False
        pause = SECONDS_BETWEEN_REDRAWS if self._terminal else SECONDS_BETWEEN_LINES
        if time.monotonic() - self._shown >= pause:
            self._show()

    def _show(self, end: bool = False) -> None:
        self._shown, self._said = time.monotonic(), True
        if self.quiet:
            return
        if self._terminal:
            print(f"\r\033[K{self.line()}", end="\n" if end else "", file=sys.stderr, flush=True)
        else:
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """Formats the report as it would be shown now."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = (self.done - self._done_before) / elapsed
        count = f"{self.done:,}"
        if self.total and self.done <= self.total:  # a total may have been a guess
            count += f"/{self.total:,} ({100 * self.done / self.total:.0f}%)"
        parts = [f"{self.what}: {count} {self.unit}", f"{rate:,.{0 if rate >= 10 else 2}f}/s"]
        if self.total and rate > 0 and self.done < self.total:
            parts.append(f"{seconds_as_text((self.total - self.done) / rate)} left")
        else:
            parts.append(f"{seconds_as_text(elapsed)}")
        parts += [
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in self._figures.items()
        ]
        return ", ".join(parts)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal or not self._said:
            self._show(end=True)
