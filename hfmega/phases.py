"""How far a command has come: its phases, counted in images, and one ETA for all of them.

Whatever passes images says so (`passed`), whatever starts a phase names it (`begin`); where nobody watches, both do
nothing. A training step counts as three passes of each of its images.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

MEMORY: Final = 30.0  # seconds over which a speed is averaged
TRAINING: Final = 3  # passes that an image of a training step costs: a backward pass costs two forward ones


@dataclass
class Level:
    """The phases of a command, or of one part of a long one. left: images still to pass in each, in order."""

    left: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    name: str = ""


@dataclass
class Speed:
    """Images per second, the newest counting most."""

    images: float = 0.0
    seconds: float = 0.0

    def measure(self, images: float, seconds: float) -> None:
        fade = math.exp(-seconds / MEMORY)
        self.images, self.seconds = self.images * fade + images, self.seconds * fade + seconds

    @property
    def rate(self) -> float | None:
        return self.images / self.seconds if self.images and self.seconds else None


class Phases:
    """What a display reads. told: called when a phase begins, and when something has moved."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._workers = int(os.environ.get("WORLD_SIZE", "1"))  # who pass as many images each
        self._levels = [Level(name="loading libraries")]
        self._speeds: dict[str, Speed] = {}
        self._started = self._ticked = clock()
        self._kind = "passes"
        self._shown_share = 0.0
        self._planned: float | None = None
        self.began = clock()
        self.done = 0.0
        self.total: float | None = None
        self.step = ""

    @property
    def name(self) -> str:
        """What goes on, part and phase."""
        return ": ".join(level.name for level in self._levels if level.name)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    @property
    def seconds_left(self) -> float | None:
        """Seconds until everything planned is done, at the speed of now; None while nothing is known of it."""
        passes, seconds = self._ahead()
        if passes + seconds <= 0:
            return None
        waiting = seconds
        for kind, images in (("passes", passes), (self._kind, self._here())):
            if images <= 0:
                continue
            speed = self._speeds.get(kind, Speed()).rate
            if speed is None:
                return None
            waiting += images / speed
        return waiting

    @property
    def share(self) -> float | None:
        """The share of the seconds since the first plan, from 0 to 1; it never falls. None while nothing is known."""
        left, since = self.seconds_left, self._clock() - (self._planned or self._clock())
        if left is None:
            return self._shown_share or None
        self._shown_share = max(self._shown_share, since / max(since + left, 1e-9))
        return self._shown_share

    def plan(self, images: Mapping[str, float], seconds: Mapping[str, float] | None = None) -> None:
        """Say what lies ahead: phase to passes of images, and phase to seconds for what passes none."""
        level = self._levels[-1]
        level.left, level.seconds = dict(images), dict(seconds or {})
        self._planned = self._planned or self._clock()

    def begin(self, name: str, images: float | None, kind: str, keep: bool) -> None:
        """Start a phase. images: how many, if no plan says so; keep: phases before it come again."""
        level = self._levels[-1]
        if images is not None:
            level.left[name] = images if kind == "passes" else 0.0
        if not keep and name in level.left:
            for earlier in list(level.left)[: list(level.left).index(name)]:
                del level.left[earlier]
        if name in level.seconds:
            level.left.clear()
        level.name, self.step, self._kind = name, "", kind
        self.total = images if images is not None else level.left.get(name)
        self.done, self.began = 0.0, self._clock()
        self._ticked = self.began

    def expect(self, name: str, images: float) -> None:
        """Correct how many images are left in a phase."""
        level = self._levels[-1]
        level.left[name] = images
        if name == level.name:
            self.total = self.done + images

    def passed(self, images: float) -> None:
        """So many images have passed, in this process and about as many in each other one."""
        now, images = self._clock(), images * self._workers
        self._speeds.setdefault(self._kind, Speed()).measure(images, now - self._ticked)
        self._ticked = now
        self.done += images
        if self.total is not None:
            self.total = max(self.total, self.done)
        left = self._levels[-1].left
        if self._kind == "passes" and self._levels[-1].name in left:
            left[self._levels[-1].name] = max(0.0, left[self._levels[-1].name] - images)

    def skipped(self, images: float) -> None:
        """So many images need not pass: an earlier run did that. They tell nothing of the speed."""
        name, left = self._levels[-1].name, self._levels[-1].left
        self.done += images
        if name in left:
            left[name] = max(0.0, left[name] - images)

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """One part of a long command, with a plan of its own, which takes the place of what was expected of it."""
        outer = self._levels[-1]
        outer.name = name
        self._levels.append(Level())
        try:
            yield
        finally:
            self._levels.pop()
            outer.left.pop(name, None)
            outer.name, self.step, self.total = "", "", None

    def _ahead(self) -> tuple[float, float]:
        """Passes and seconds that are planned and not done."""
        passes = seconds = 0.0
        levels = list(self._levels)  # a display reads them from a thread of its own
        for level, inner in zip(levels, [*levels[1:], Level()], strict=True):
            planned = bool(inner.left or inner.seconds)
            passes += sum(left for name, left in list(level.left.items()) if not (planned and name == level.name))
            seconds += sum(level.seconds.values())
            if level.name in level.seconds:
                seconds -= min(level.seconds[level.name], self._clock() - self.began)
        return passes, seconds

    def _here(self) -> float:
        """What is left of a phase whose images are not passes through a network."""
        return 0.0 if self._kind == "passes" or self.total is None else max(0.0, self.total - self.done)


class Watch:
    """Who is told of a running command."""

    def __init__(self, phases: Phases, began: Callable[[], None], moved: Callable[[], None]) -> None:
        self.phases, self.began, self.moved = phases, began, moved


WATCH: Final[ContextVar[Watch | None]] = ContextVar("watch", default=None)


def plan(images: Mapping[str, float], seconds: Mapping[str, float] | None = None) -> None:
    """Say what lies ahead of this command: phase to passes of images, and phase to seconds for what passes none."""
    if watch := WATCH.get():
        watch.phases.plan(images, seconds)


def begin(name: str, images: float | None = None, kind: str = "passes", keep: bool = False) -> None:
    """Start a phase. images: how many it passes, if no plan says so; keep: phases before it come again.

    kind: `passes` through a network, or something of another speed, such as `reads`.
    """
    if watch := WATCH.get():
        watch.phases.begin(name, images, kind, keep)
        watch.began()


def expect(name: str, images: float) -> None:
    """Correct how many images are left in a phase."""
    if watch := WATCH.get():
        watch.phases.expect(name, images)


def passed(images: float) -> None:
    """So many images have passed."""
    if watch := WATCH.get():
        watch.phases.passed(images)
        watch.moved()


def skipped(images: float) -> None:
    """So many images need not pass: an earlier run did that."""
    if watch := WATCH.get():
        watch.phases.skipped(images)


def step(text: str) -> None:
    """Where in its phase a command is, e.g. `3 of 8`."""
    if watch := WATCH.get():
        watch.phases.step = text
        watch.moved()


@contextmanager
def inside(name: str) -> Iterator[None]:
    """One part of a long command, with a plan of its own."""
    watch = WATCH.get()
    if watch is None:
        yield
        return
    with watch.phases.inside(name):
        yield


def duration(seconds: float) -> str:
    """A time as a person says it: in the unit that fits, a decimal where a whole number would say too little."""
    if seconds >= 5400:
        return f"{seconds / 3600:,.1f} hours"
    if seconds >= 90:
        return f"{seconds / 60:.{1 if seconds < 180 else 0}f} minutes"
    return f"{max(round(seconds), 1)} second{'s' if round(seconds) > 1 else ''}"


def clock_of(seconds: float) -> str:
    """A duration as a clock shows it: 0:07, 12:30, 3:00:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
