"""Checks that recorded scores a job reads as a teacher still belong to the run that they name."""

from pathlib import Path

from recdistill.data.recorded import Provenance, refuse_stale
from recdistill.errors import LogError
from recdistill.runs.rescore import Finished, provenance
from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job


def check_scores(job: Job, spec: FeatureSpec) -> None:
    """Raise unless every score file that a job reads fits its log and belongs to its run as that is now.

    Raises:
        LogError: rows are identified otherwise, or the teacher has changed since.
        RunError: the run that the job names is not complete.
    """
    for name, member in job.members.items():
        if member.scores is None:
            continue
        file = Path(member.scores.file)
        found = Provenance.of(file)
        if not spec.row_id:
            raise LogError(
                f"members.{name}.scores: rows are found by their ids, but the feature spec names no `row_id`; name the "
                "columns that identify a row"
            )
        expected: dict[str, object] = {"row_id": [*spec.row_id]}
        run = Path(member.scores.run or found.run)
        if member.scores.run is not None or (run / "report.json").exists():
            now = Finished.open(run)
            copies = now.copies(found.member, out_of_fold=found.out_of_fold)
            expected["fingerprint"] = provenance(now, found.member, copies, out_of_fold=found.out_of_fold).fingerprint
        refuse_stale(file, expected)
