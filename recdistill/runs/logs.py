"""The logs of a run: simulated if the job asks for it, and encoded; both kept in the cache by fingerprint."""

from pathlib import Path
from typing import Any

from recdistill.data.encode import encode, fingerprint_of
from recdistill.data.encoded import EncodedLog
from recdistill.data.log import log_files
from recdistill.data.simulate import simulate_marketplace
from recdistill.data.simulate_spec import flat_spec, simulate_spec
from recdistill.runs.console import Reporter
from recdistill.runs.folder import cache_folder, fingerprint
from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job, Simulation


def raw_log(job: Job, spec: FeatureSpec, reporter: Reporter) -> tuple[str, FeatureSpec]:
    """The path of the log, simulated first if the job asks for it, and the spec that it answers to."""
    if not isinstance(job.log, Simulation):
        log_files(job.log)
        return job.log, spec
    made_for = [spec.model_dump(mode="json"), job.label, job.where] if job.log.simulate == "spec" else []
    key = fingerprint([job.log.model_dump(), made_for])
    path = cache_folder("logs") / f"{job.log.simulate}-{key[:16]}.parquet"
    options: dict[str, Any] = {"rows": job.log.rows, "seed": job.log.seed, "labelled": job.log.labelled}
    if not path.exists():
        with reporter.rows("simulating", job.log.rows) as done:
            if job.log.simulate == "marketplace":
                simulate_marketplace(path, **options, privileged=job.log.privileged, progress=done)
            else:
                simulate_spec(spec, path, **options, label=job.label, where=job.where, progress=done)
    return str(path), flat_spec(spec) if job.log.simulate == "spec" else spec


def encoded(spec: FeatureSpec, log: str, job: Job, fit_on: tuple[str, ...], reporter: Reporter) -> EncodedLog:
    """The encoded log, from the cache if nothing has changed."""
    extends = None
    if job.extends is not None:
        extends = Path(job.extends)
        extends = extends / "fitted" if (extends / "fitted").exists() else extends
    out = cache_folder("encoded") / fingerprint_of(spec, log, job.where, fit_on, extends)[:16]
    with reporter.rows("encoding") as done:
        return encode(spec, log, out, where=job.where, fit_on=fit_on, extends=extends, progress=done)
