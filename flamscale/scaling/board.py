"""The state of a study's runs on the terminal: a live table, or a line for each change where there is no terminal."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

from flamscale.scaling.records import RunRecord
from flamscale.scaling.study import Run


class Board:
    """Knows the state of every run; those on record as finished or stopped are so from the start.

    Attributes:
        states: by the run's name.

    Raises:
        ConfigError: a run directory holds a run of other settings.
    """

    def __init__(self, runs: Sequence[Run], console: Console | None = None) -> None:
        self._runs = runs
        self._console = console or Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self.states = {run.name: RunRecord(run).state for run in runs}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the table inside the block."""
        if self._live is None:
            self._console.print(self.summary)
            yield
            return
        with self._live:
            self.refresh()
            yield
            self.refresh()

    def tell(self, run: Run, state: str) -> None:
        """Takes a run's new state."""
        self.states[run.name] = state
        if self._live is None:
            self._console.print(f"{run.name}: {state} ({self.summary})", soft_wrap=True)

    def refresh(self) -> None:
        """Draws the table anew, with the newest step and loss of every run."""
        if self._live is not None:
            self._live.update(self.table(), refresh=True)

    @property
    def summary(self) -> str:
        """How many runs are finished."""
        return f"{sum(state == 'finished' for state in self.states.values())} of {len(self.states)} runs finished"

    def table(self) -> Table:
        """Returns all runs with state, attempts, step and loss."""
        table = Table("run", "state", "attempts", "step", "loss", "s", box=None, title=self.summary)
        for run in self._runs:
            record = RunRecord(run)
            known, last = record.read(), record.last
            table.add_row(
                run.name,
                self.states[run.name],
                str(len(known["attempts"])),
                f"{last['step']:,} of {run.config.flam_stage.num_steps:,}" if last else "-",
                f"{last['loss']:.3g}" if last else "-",
                f"{known['seconds']:.0f}" if known["finished"] else "-",
            )
        return table
