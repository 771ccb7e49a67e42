"""The ensemble of the sources as a teacher: who is in it, and what it says of images without labels."""

from dataclasses import replace

from hfmega.data.images import Split, stratified
from hfmega.merging.prepare import Job
from hfmega.search.recipe import Recipe, source_alone


def teacher_of(job: Job) -> list[Recipe]:
    """The leaves alone, as they are or with re-estimated statistics: the ensemble of lower loss on search images."""
    count = len(job.checkpoints)
    ways = (False, True) if job.evaluator.network.can_calibrate else (False,)
    ensembles = [[source_alone(k, count, way) for k in range(count)] for way in ways]
    return min(ensembles, key=lambda recipes: job.evaluator.ensemble(recipes, job.search).mean_loss)


def answered(job: Job) -> Split:
    """The images that steer a search by the ensemble's answers: unlabelled ones if they were named, else the search's.

    Their labels are the teacher's probabilities.
    """
    named = job.unlabelled if job.settings.steered_unlabelled else None
    images = named or job.search
    probabilities = job.evaluator.together(teacher_of(job), images).exp()
    found = replace(images, labels=probabilities, fingerprint=f"{images.fingerprint}, answered by the ensemble")
    return stratified(found) if named else found
