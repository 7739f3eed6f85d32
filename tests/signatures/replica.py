"""One of several processes that meet in a shared folder: trains the jobs that it is told about on standard input.

So that what comes of it does not depend on who is faster, each visit waits until the other process has been there,
unless the process is started with the word ``freely``.
"""

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

PATIENCE = 60  # seconds


def main() -> None:
    warnings.simplefilter("ignore")
    import yaml

    from recdistill.data.encoded import EncodedLog
    from recdistill.distill.compile import compile_job, problems_of
    from recdistill.spec.load import parse_job
    from recdistill.training.exchange import Exchange
    from recdistill.training.fit import fit
    from recdistill.training.reading import Data, Training

    others = Exchange._others

    def in_step(exchange: Exchange, folder: Path) -> Any:
        """What the others have left up to the step of this visit, once they have left that of this step."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            found = others(exchange, folder)
            if found and all(exchange.before in steps for _, steps in found):
                return [(name, steps[steps.index(exchange.before or "") :]) for name, steps in found]
            time.sleep(0.01)
        raise TimeoutError(f"{exchange.before}: nobody came")

    if sys.argv[1:] != ["freely"]:
        Exchange._others = in_step  # type: ignore[method-assign]
    for line in sys.stdin:
        folder, encoded, described = json.loads(line)
        try:
            job, _ = parse_job(yaml.safe_load(described), "replica", check=problems_of)
            log = EncodedLog.open(Path(encoded))
            # The shared folder is this test's own, so nothing in it is of an earlier run.
            fit(Training(compile_job(job, log.spec), job.train, Data.of(log), 0, since=0.0), Path(folder))
            answer = ""
        except Exception as error:  # told to the test, which fails
            answer = repr(error)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
