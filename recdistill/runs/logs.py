"""The logs of a run: simulated if the job asks for it, and encoded; both kept in the cache by fingerprint."""

from pathlib import Path
from typing import Any

from recdistill.data.encode import encode, fingerprint_of
from recdistill.data.encoded import EncodedLog
from recdistill.data.files import log_files
from recdistill.data.fit import FittedSpec
from recdistill.data.lists import in_lists
from recdistill.data.log import spec_of
from recdistill.data.simulate import VERSION, simulate_marketplace
from recdistill.data.simulate_preferences import simulate_preferences
from recdistill.data.simulate_spec import flat_spec, simulate_spec
from recdistill.publish import published
from recdistill.runs.console import Reporter
from recdistill.runs.folder import cache_folder, fingerprint
from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job, Simulation
from recdistill.training.reading import Logs


def raw_log(job: Job, spec: FeatureSpec, reporter: Reporter) -> tuple[str, FeatureSpec]:
    """The path of the log, simulated first if the job asks for it, and the spec that it answers to."""
    if not isinstance(job.log, Simulation):
        log_files(job.log)
        return job.log, spec
    made_for = [spec.model_dump(mode="json"), job.label, job.where] if job.log.simulate == "spec" else []
    key = fingerprint([job.log.model_dump(), made_for, VERSION])
    path = cache_folder("logs") / f"{job.log.simulate}-{key[:16]}.parquet"
    options: dict[str, Any] = {"rows": job.log.rows, "seed": job.log.seed, "labelled": job.log.labelled}
    if not path.exists():
        with reporter.rows("simulating", job.log.rows) as done:
            if job.log.simulate == "marketplace":
                simulate_marketplace(path, **options, privileged=job.log.privileged, progress=done)
            elif job.log.simulate == "preferences":
                simulate_preferences(path, rows=job.log.rows, seed=job.log.seed, progress=done)
            else:
                simulate_spec(spec, path, **options, label=job.label, where=job.where, progress=done)
    return str(path), flat_spec(spec) if job.log.simulate == "spec" else spec


def encoded(spec: FeatureSpec, log: str, job: Job, fit_on: tuple[str, ...], reporter: Reporter) -> Logs:
    """The encoded log, and those of the job's feeds, from the cache if nothing has changed."""
    extends = None
    if job.extends is not None:
        extends = Path(job.extends)
        extends = extends / "fitted" if (extends / "fitted").exists() else extends
    cache = cache_folder("encoded")
    out = cache / fingerprint_of(spec, log, job.where, fit_on, extends)[:16]
    with reporter.rows("encoding") as done:
        main = encode(spec, log, out, where=job.where, fit_on=fit_on, extends=extends, progress=done)
    feeds = {}
    for name, feed in job.feeds.items():
        if feed.log is not None:
            theirs = spec_of(spec, feed.log)
            key = fingerprint([fingerprint_of(theirs, feed.log, feed.where, (), None), main.fingerprint])
            folder = cache / key[:16]
            if not folder.exists():
                known = FittedSpec({n: main.fitted.columns[n] for n in theirs.columns})
                with reporter.rows(f"encoding {name}") as done, published(folder, replace=False) as work:
                    encode(theirs, feed.log, work, where=feed.where, fitted=known, progress=done)
            feeds[name] = EncodedLog.open(folder)
    if job.train.whole_lists:
        main = in_lists(main, fit_on, cache / f"{main.fingerprint[:16]}-lists-{len(fit_on)}")
    return Logs(main, feeds)
