"""`--report-to`: the search of a merge, followed by one of Accelerate's trackers."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, Final

from hfmega.errors import HfmegaError
from hfmega.output import Output
from hfmega.report import card
from hfmega.report.lineage import Lineage
from hfmega.search import Generation
from hfmega.settings import MergeSettings, recorded

PROJECT: Final = "hfmega"
FOLDER: Final = "tensorboard"  # inside that of the merge


class Tracker:
    """One of Accelerate's trackers, or none. One that fails later is left alone: a search does not end for it."""

    def __init__(self, tracker: Any = None, output: Output | None = None) -> None:
        self._tracker, self._output = tracker, output
        self._generations = 0

    def generation(self, node: str, number: int, newest: Generation, rate: float | None = None) -> None:
        """Tell one generation of one search. rate: images in a second; None for one of an earlier run."""
        self._generations += 1
        values = {"generation": number, "best": newest.best, "mean": newest.mean, "spread": newest.spread}
        values |= {} if rate is None else {"images_per_second": rate}
        self._tell(lambda t: t.log({f"{node}/{key}": float(v) for key, v in values.items()}, step=self._generations))

    def earlier(self, node: str, history: Sequence[Generation]) -> None:
        """Tell the generations that a resumed search has behind it."""
        for number, generation in enumerate(history, 1):
            self.generation(node, number, generation)

    def result(self, made: Lineage | None) -> None:
        """Tell what came out: accuracy and gain as figures, the comparison as a table."""
        if made is not None:
            values = {
                "test/accuracy": made.result.accuracy,
                "test/gain": made.result.gain,
                "test/loss": made.result.loss,
            }
            self._tell(lambda t: t.log(values, step=self._generations))
            self._tell(lambda t: table(t, *card.comparison_rows(made), step=self._generations))

    def close(self) -> None:
        """End the run of the tracker."""
        self._tell(end)

    def _tell(self, call: Callable[[Any], object]) -> None:
        if self._tracker is None:
            return
        try:
            with redirect_stdout(sys.stderr):  # some of them print
                call(self._tracker)
        except Exception as error:  # of a server, an account, a disk: anything
            assert self._output is not None
            self._output.say(f"{self._tracker.name} failed, and hears no more: {first_line(error)}")
            self._tracker = None


def check(name: str) -> None:
    """Raises HfmegaError for a tracker that is not installed."""
    if name != "none":
        from accelerate.tracking import get_available_trackers

        if name not in [known.value for known in get_available_trackers()]:
            raise HfmegaError(f"--report-to {name} needs a package that is not installed: pip install {name}.")


@contextmanager
def tracked(settings: MergeSettings, main: bool, output: Output) -> Iterator[Tracker]:
    """The tracker that the settings ask for, told the settings. main: whether this is the process that speaks.

    Raises HfmegaError for one that cannot be started.
    """
    tracker = Tracker(started(settings), output) if main and settings.report_to != "none" else Tracker()
    try:
        yield tracker
    finally:
        tracker.close()


def started(settings: MergeSettings) -> Any:
    """A tracker of Accelerate that has begun its run."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind, name = LOGGER_TYPE_TO_CLASS[settings.report_to], settings.output.resolve().name
    try:
        if kind.requires_logging_directory:
            tracker = kind(f"{FOLDER}/{time.strftime('%Y%m%d-%H%M%S')}", settings.output)
        elif settings.report_to == "mlflow":
            tracker = kind(PROJECT, run_name=name)
        else:
            tracker = kind(PROJECT, name=name)
        with redirect_stdout(sys.stderr):
            tracker.start()
        tracker.store_init_configuration({"sources": " ".join(settings.sources), **recorded(settings)})
    except Exception as error:  # of a server, an account, a disk: anything
        raise HfmegaError(f"--report-to {settings.report_to} could not be started: {first_line(error)}") from error
    return tracker


def end(tracker: Any) -> None:
    """End a run; trackio would end Accelerate's once more when Python exits, and print to stdout."""
    if tracker.name == "trackio":
        import trackio

        trackio.finish()
    else:
        tracker.finish()


def table(tracker: Any, columns: list[str], rows: list[list[str]], step: int) -> None:
    """The comparison, as each tracker keeps a table."""
    if tracker.name == "wandb":
        tracker.log_table("test/comparison", columns, rows, step=step)
    elif tracker.name == "mlflow":
        import mlflow

        mlflow.log_table({name: [row[k] for row in rows] for k, name in enumerate(columns)}, "comparison.json")
    elif tracker.name == "trackio":
        import pandas
        import trackio

        tracker.log({"test/comparison": trackio.Table(dataframe=pandas.DataFrame(rows, columns=columns))}, step=step)
    else:
        lines = [columns, ["---"] * len(columns), *rows]
        tracker.log({"test/comparison": "\n".join(f"| {' | '.join(line)} |" for line in lines)}, step=step)


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
