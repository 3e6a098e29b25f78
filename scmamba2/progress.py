"""A progress bar."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TimeRemainingColumn

__all__ = ["Bar"]


class Bar(Progress):
    """Cells done, speed and time left, in a terminal; nothing elsewhere."""

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        console = Console(stderr=True)
        columns = "{task.description}", BarColumn(), "{task.fields[note]}", TimeRemainingColumn()
        super().__init__(*columns, console=console, disable=not console.is_terminal)
        self.only = self.add_task(title, total=total, completed=done, note="")
        self.start_time, self.cells = time.perf_counter(), 0

    def step(self, cells: int, note: str = "") -> None:
        """Count ``cells`` as done and show ``note``."""
        self.cells += cells
        speed = f"{self.cells / (time.perf_counter() - self.start_time):.3g} cells/s"
        self.update(self.only, advance=cells, note=f"{note}, {speed}" if note else speed)
