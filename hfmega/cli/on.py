"""`hfmega merge --on FLAVOR`: the merge runs as a job of the Hub; what is shown and printed of it here."""

from dataclasses import asdict
from typing import Any

from hfmega import phases
from hfmega.cli.publishing import push_target
from hfmega.settings import MergeSettings


def as_job(settings: MergeSettings, output: Any, flags: dict[str, Any]) -> None:
    """Start the job of a merge, or find it, and follow it to its end; its verdict is the verdict here."""
    from hfmega.hub.jobs import logged_in
    from hfmega.launch import follow, job, local

    job.check(settings)
    local.check_dataset(settings.dataset)
    jobs = logged_in()
    if flags["dry_run"]:
        estimated(settings, jobs, output, flags)
        return
    phases.begin("starting the job")
    target = push_target(flags["push_to_hub"], flags) if flags["push_sources"] else None
    settings = local.without_local(settings, target, output)
    order = job.order_of(settings, flags)
    found, new = job.job_for(jobs, order, settings.overwrite)
    output.say(job.introduced(found, new))
    result = follow.follow(jobs, found, output)
    place, folder = job.place_of(jobs, found), settings.output
    output.finish(place, [f"hf buckets sync {place} {folder}", f"hfmega verify {folder}"])
    output.result(place, {**result, "output": place})


def estimated(settings: MergeSettings, jobs: Any, output: Any, flags: dict[str, Any]) -> None:
    """What the merge would do, and what the job would cost. The speed is that of this machine."""
    from hfmega.launch import local, price
    from hfmega.merging import estimate
    from hfmega.phases import duration

    flavor = price.flavor_of(jobs, flags["on"])
    if not flags["push_sources"]:
        local.without_local(settings, None, output)
    found = estimate.estimate(settings)
    columns, rows = estimate.described(found)
    rows = [["estimated time (here)" if name == "estimated time" else name, *rest] for name, *rest in rows]
    output.table("What this merge would do", columns, rows + price.price_rows(flavor, found.seconds))
    output.result(duration(found.seconds), {**asdict(found), **price.price_fields(flavor, found.seconds)})
