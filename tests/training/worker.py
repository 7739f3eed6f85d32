"""One of several processes that live as long as the tests: trains the jobs that it is told about on standard input."""

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def train(told: dict[str, Any]) -> None:
    from recdistill.data.encoded import EncodedLog
    from recdistill.distill.compile import compile_job, problems_of
    from recdistill.spec.load import parse_job
    from recdistill.training.fit import fit
    from recdistill.training.processes import rank
    from recdistill.training.reading import Data, Logs, Training

    job, spec = parse_job(told["job"], "test", check=problems_of)
    feeds = {name: EncodedLog.open(Path(folder)) for name, folder in told["feeds"].items()}
    logs = Logs(EncodedLog.open(Path(told["log"])), feeds)
    training = Training(compile_job(job, spec), job.train, Data(logs, logs), 0, since=told["since"])
    cast = fit(training, Path(told["folder"]))
    held = {bank: sorted(table for table, _, _ in cast.tables.shards(bank)) for bank in cast.layout.banks}
    (Path(told["folder"]) / f"held-{rank()}.json").write_text(json.dumps(held))


@contextmanager
def dividing(gradients: bool) -> Iterator[None]:
    """The wrong twin: dense gradients are a mean over processes, as if each had divided by its own rows."""
    from recdistill.training import engine
    from recdistill.training.processes import world

    right = engine.sum_gradients

    def mean_of_gradients(optimizer: Any) -> None:
        right(optimizer)
        for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
            parameter.grad /= world()

    engine.sum_gradients = mean_of_gradients if gradients else right
    yield
    engine.sum_gradients = right


@contextmanager
def apart(statistics: bool) -> Iterator[None]:
    """The wrong twin: each process normalises batches by its own rows."""
    from recdistill.training import cast

    right = cast.over_all_processes
    cast.over_all_processes = (lambda _: None) if statistics else right
    yield
    cast.over_all_processes = right


def main() -> None:
    warnings.simplefilter("ignore")
    from recdistill.training.sharding import process_group

    with process_group():
        for line in sys.stdin:
            try:
                told = json.loads(line)
                with dividing(told["dividing"]), apart(told["apart"]):
                    train(told)
                answer = ""
            except Exception as error:  # told to the test, which fails
                answer = repr(error)
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
