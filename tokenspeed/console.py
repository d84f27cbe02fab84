"""What a person at the terminal sees: progress while a model loads, and errors in one line."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from tokenspeed.build import Progress as Tell
from tokenspeed.build import Stage


def configure_logging(console: Console, level: str) -> None:
    """Log lines through the console, so that they do not tear a progress bar."""
    handler = RichHandler(console=console, show_path=False, rich_tracebacks=False, log_time_format="%X")
    logging.basicConfig(level=level.upper(), format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # starting and stopping is told by ourselves
    logging.getLogger("numba").setLevel(logging.WARNING)  # its compiler tells every step at debug


@contextlib.contextmanager
def stages(console: Console) -> Iterator[Stage]:
    """One line for each stage that begins, with a bar where its size is known; the last one spins."""
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        running: list[TaskID] = []

        def finish() -> None:
            for task in running:
                progress.update(task, total=1, completed=1)
            running.clear()

        def begin(name: str) -> Tell:
            finish()
            task = progress.add_task(name, total=None)
            running.append(task)
            return lambda done, total: progress.update(task, completed=done, total=total)

        yield begin
        finish()
