"""The tables of `make bench`: what is measured for each, and what is said of it."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any, Final

import projection
from bench import Bench, Found

WAYS: Final = {
    "default": "hfmega",
    "exact": "hfmega --exact",
    "plain": "plain PyTorch",
    "torchga": "PyGAD (torchga)",
    "bare": "forward passes alone",
}
BLOCKS: Final = {"calibrate": True, "no-calibrate": False}
VARIANTS: Final[dict[str, dict[str, Any]]] = {  # name -> fields of hfmega.evaluation.race.Race
    "as it is": {},
    "halving of every population from the first rung on": {"first": False},
    "without the paired test": {"test": False},
    "without halving": {"halving": False},
}
LATE: Final = 20  # generations after which materializing is timed


@dataclass(frozen=True)
class Table:
    """What a page and a terminal show."""

    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]


def rows(bench: Bench) -> Iterator[Table]:
    """The main table, a block with and a block without calibration; the rows in turn, as often as asked."""
    for block in bench.options.blocks:
        measured: dict[str, list[Found]] = {WAYS[way]: [] for way in bench.options.ways}
        for repeat in range(bench.options.repeats):
            for way in bench.options.ways if repeat == 0 else bench.options.repeated:
                individuals = measured[WAYS["exact"]][0]["individuals"] if way == "bare" else 0
                asked = {"way": way, "calibrate": BLOCKS[block], "individuals": individuals, "repeat": repeat}
                measured[WAYS[way]].append(bench.measure("row", **asked, test=True))
                if earlier := bench.earlier("row", **asked, test=True):
                    measured.setdefault(f"{WAYS[way]}, {bench.options.before_name}", []).append(earlier)
        yield block_table(block, measured, bench)


def block_table(block: str, measured: dict[str, list[Found]], bench: Bench) -> Table:
    """measured: row to what was found, once for each repeat."""
    seconds = {row: median(found["seconds"] for found in several) for row, several in measured.items()}
    compared = [way for way in (WAYS["default"], WAYS["bare"]) if way in measured]
    options = bench.options
    return Table(
        f"One search, {'with' if BLOCKS[block] else 'without'} re-estimated BatchNorm statistics",
        f"{options.generations} populations of {options.population} are scored in every row; seed {options.seed}, "
        f"{times(measured.values())}. Seconds: from the first ask to the last tell, median"
        " (least to most). Images: all that went through the network, those for calibration too. "
        "Memory: of the process at most while it searched, and how much of that the search added to what was loaded. "
        "Fitness and test: of the best individual; of forward passes alone (as many as --exact makes, in its batches, "
        "nothing searched) of the sources' average.",
        [
            *("search", "seconds", "individuals", "images", "images/s", "peak MB", "added MB", "fitness", "test"),
            *(f"seconds / {'hfmega' if way == WAYS['default'] else 'passes'}" for way in compared),
        ],
        [
            [row, *cells(several), *(f"{seconds[row] / seconds[way]:.2f}" for way in compared)]
            for row, several in measured.items()
        ],
    )


def cells(several: list[Found]) -> list[str]:
    """What a row says of one way of searching, measured several times."""
    first, seconds = several[0], [found["seconds"] for found in several]
    spread = f" ({min(seconds):.1f} to {max(seconds):.1f})" if len(several) > 1 else ""
    return [
        f"{median(seconds):.1f}{spread}",
        "-" if first["individuals"] is None else f"{first['individuals']:,}",
        f"{first['images']:,}",
        f"{first['images'] / median(seconds):,.0f}",
        memory(max(found["peak_mb"] for found in several)),
        f"+{max(found['peak_mb'] - found['start_mb'] for found in several):.0f}",
        f"{first['fitness']:.4f}",
        f"{first['test']:.4f}",
    ]


def times(measured: Collection[list[Found]]) -> str:
    """How often the rows were measured."""
    counts = [len(several) for several in measured]
    if max(counts) == 1:
        return "measured once"
    return f"measured {max(counts)} times in turn" + (", some rows less often" if min(counts) < max(counts) else "")


def memory(megabytes: float) -> str:
    return f"{megabytes:,.0f}"


def several(bench: Bench, **others: Any) -> list[Found]:
    """The same search from many seeds, one after another in one process."""
    found: list[Found] = bench.measure("seeds", **asked_of_seeds(bench), **others)["searches"]
    return found


def asked_of_seeds(bench: Bench) -> Found:
    options = bench.options
    calibrate = options.seeds_block == "calibrate"
    return {"calibrate": calibrate, "test": True, "seed": options.seeds, "threads": options.seeds_threads}


def exact_before(bench: Bench) -> tuple[list[Found], int] | None:
    """The searches with exact scores of the earlier commit, and their threads: what they find is no matter of speed."""
    for threads in range(1, (os.cpu_count() or 1) + 1):
        if found := bench.earlier("seeds", **{**asked_of_seeds(bench), "threads": threads}, way="exact"):
            return found["searches"], threads
    return None


def seeds(bench: Bench) -> Iterator[Table]:
    """Whether a race costs accuracy: the same searches with and without."""
    known = exact_before(bench)
    scored = known[0] if known else several(bench, way="exact")
    whence = f" Exact scores are those of {bench.options.before_name}, {known[1]} thread(s)." if known else ""
    pairs = list(zip(several(bench, way="default"), scored, strict=True))
    differences = [race["test"] - exact["test"] for race, exact in pairs]
    share = sum(race["images"] for race, _ in pairs) / sum(exact["images"] for _, exact in pairs)
    error = f"{100 * stdev(differences) / len(pairs) ** 0.5:.2f}" if len(pairs) > 1 else "-"
    yield Table(
        "The race against exact scores",
        f"{len(pairs)} search seeds, {bench.options.seeds_block}, {bench.options.seeds_threads} thread(s). On the test "
        "images the race's best is "
        f"{100 * fmean(differences):+.2f} points from that of exact scores on average (standard error {error} points), "
        f"for {share:.0%} of the images.{whence}",
        ["seed", "test, hfmega", "test, --exact", "points", "images, hfmega", "images, --exact", "share"],
        [
            [
                str(seed),
                f"{race['test']:.4f}",
                f"{exact['test']:.4f}",
                f"{100 * difference:+.2f}",
                f"{race['images']:,}",
                f"{exact['images']:,}",
                f"{race['images'] / exact['images']:.0%}",
            ]
            for seed, ((race, exact), difference) in enumerate(zip(pairs, differences, strict=True))
        ],
    )


def variants(bench: Bench) -> Iterator[Table]:
    """What each part of the race saves, and when: means over the seeds."""
    searched = {"no race (--exact)": several(bench, way="exact")}
    for variant in bench.options.variants:
        race = {"race": VARIANTS[variant]} if VARIANTS[variant] else {}
        searched[variant] = several(bench, way="default", **race)
    whole = mean("images", searched["no race (--exact)"])
    yield Table(
        "The parts of the race",
        f"Means over {bench.options.seeds} search seeds, {bench.options.seeds_block}. First, last: the share of the "
        "search images that the individuals of the first and of the last population have seen.",
        ["race", "seconds", "images", "share", "first", "last", "fitness", "test"],
        [
            [
                variant,
                f"{mean('seconds', found):.1f}",
                f"{mean('images', found):,.0f}",
                f"{mean('images', found) / whole:.0%}",
                *(f"{fmean(f['shares'][k] for f in found):.0%}" for k in (0, -1)),
                f"{mean('fitness', found):.4f}",
                f"{mean('test', found):.4f}",
            ]
            for variant, found in searched.items()
        ],
    )


def mean(what: str, found: list[Found]) -> float:
    return fmean(one[what] for one in found)


def population(bench: Bench) -> Iterator[Table]:
    """Cost against population; the memory must not depend on it."""
    searched = {
        size: bench.measure(
            "row",
            way="default",
            population=size,
            generations=2,
            images=bench.options.population_images,
            calibrate=False,
        )
        for size in bench.options.populations
    }
    peaks = [found["peak_mb"] for found in searched.values()]
    yield Table(
        "Cost against population",
        f"Two populations of each size, {bench.options.population_images:,} fitness images, without calibration. "
        f"Peak memory lies between {memory(min(peaks))} and "
        f"{memory(max(peaks))} MB: an individual is a recipe of a few numbers.",
        ["population", "seconds", "images", "images/s", "peak MB", "added MB"],
        [
            [
                str(size),
                f"{found['seconds']:.1f}",
                f"{found['images']:,}",
                f"{found['images'] / found['seconds']:,.0f}",
                memory(found["peak_mb"]),
                f"+{found['peak_mb'] - found['start_mb']:.1f}",
            ]
            for size, found in searched.items()
        ],
    )


def size(bench: Bench) -> Iterator[Table]:
    """What materializing is of an evaluation, by the size of the network."""
    measured = {
        architecture: bench.measure("steps", architecture=architecture, generations=LATE, calibrate=True)
        for architecture in bench.options.architectures
    }
    yield Table(
        "Cost against the size of the network",
        f"One individual of generation {LATE} of a search that was told made-up scores (untrained weights, "
        f"{bench.options.population} individuals): materialized, calibrated, materialized again and scored. Share: of "
        "materializing, both times.",
        ["network", "floats", "noise terms", "materializing (ms)", "evaluation (ms)", "share", "images/s"],
        [
            [
                architecture,
                f"{found['floats']:,}",
                str(found["noise_terms"]),
                f"{1000 * found['materializing']:.1f}",
                f"{1000 * found['evaluation']:.0f}",
                f"{2 * found['materializing'] / found['evaluation']:.1%}",
                f"{found['images_per_second']:,.0f}",
            ]
            for architecture, found in measured.items()
        ],
    )


def passes(bench: Bench) -> Iterator[Table]:
    """What of the forward passes is faster otherwise."""
    found = bench.measure("ways", images=bench.options.population_images)
    usual = next(iter(found.values()))["images_per_second"]
    yield Table(
        "Ways of passing images through the network",
        "The search images through one individual that is materialized already, medians of rounds in which all ways "
        "take turns. Ratio: of images a second to those of the first row. First pass: what a way costs once.",
        ["way", "images/s", "ratio", "first pass (s)"],
        [
            [
                way,
                f"{rate['images_per_second']:,.0f}",
                f"{rate['images_per_second'] / usual:.2f}",
                f"{rate['first']:.1f}",
            ]
            for way, rate in found.items()
        ],
    )


def workers(bench: Bench) -> Iterator[Table]:
    """A projection to more workers from the steps measured here: of the set that was searched, and of a large one."""
    step = bench.measure("steps", generations=bench.options.generations, calibrate=True)
    for images in (step["search_images"], bench.options.large):
        yield projected(bench, step, images)


def projected(bench: Bench, step: Found, images: int) -> Table:
    """images: how many steer the search."""
    options, costs = bench.options, costs_of(bench, step, images)
    shape = options.population - 1, images, step["calibration_images"]
    races = {"--exact": projection.exact(*shape, costs), "hfmega": projection.raced(*shape, costs)}
    words = [
        f"{phase.individuals} {'re-estimate statistics from' if phase.calibrates else 'see'} {phase.images:,}"
        for phase in races["hfmega"]
    ]

    def cells(phases: list[projection.Phase], count: int) -> list[str]:
        alone, together = (projection.generation(phases, costs, k) for k in (1, count))
        calibrating = projection.calibrating(phases, costs, count)
        return [f"{together:.2f}", f"{alone / together:.1f}", f"{calibrating / together:.0%}"]

    return Table(
        f"More workers, {images:,} search images (a projection, not a measurement)",
        f"The {options.population - 1} children of a generation, a phase at a time: {', then '.join(words)} images, if "
        f"the paired test stops nobody. The batches of a phase ({costs.batch} images, {costs.calibration_batch} for "
        "statistics) are cut into equal parts, as a search cuts them, and the slowest worker counts. From steps "
        f"measured on one worker: materializing {1000 * costs.materializing:.1f} ms for each individual of a part, "
        f"calibrating {1e6 * costs.calibrating:.0f} µs and scoring {1e6 * costs.scoring:.0f} µs an image, roughly "
        f"{1e6 * costs.rough_calibrating:.0f} and {1e6 * costs.rough_scoring:.0f} µs ({step['rough']}), deciding "
        f"{1000 * costs.deciding:.1f} ms a generation, gathering {1000 * costs.gathering:.2f} ms a phase between two "
        "processes of one machine (taken to be the same for more). Seconds: of a generation. Calibrating: its share "
        "of them.",
        ["workers", *(cell for race in races for cell in (f"seconds, {race}", "speed-up", "calibrating"))],
        [
            [str(count), *(cell for phases in races.values() for cell in cells(phases, count))]
            for count in options.workers
        ],
    )


def costs_of(bench: Bench, step: Found, images: int) -> projection.Costs:
    """The steps by measurement. images: how many steer the search: a ninth of them is gathered of each individual."""
    return projection.Costs(
        materializing=step["materializing"],
        calibrating=step["calibrating"] / max(step["calibration_images"], 1),
        scoring=step["scoring"] / step["search_images"],
        rough_calibrating=step["rough_calibrating"],
        rough_scoring=step["rough_scoring"] / step["search_images"],
        deciding=step["deciding"],
        gathering=bench.measure("gather", images=images)["gather"],
        calibration_batch=step["calibration_batch"],
        batch=step["batch"],
    )


TABLES: Final = {f.__name__: f for f in (rows, seeds, variants, population, size, passes, workers)}
