"""One of several processes that live as long as the tests: trains the jobs that it is told about on standard input."""

import json
import sys
import warnings
from pathlib import Path


def main() -> None:
    warnings.simplefilter("ignore")
    from recdistill.data.encoded import EncodedLog
    from recdistill.distill.compile import compile_job, problems_of
    from recdistill.spec.load import parse_job
    from recdistill.training.fit import fit
    from recdistill.training.reading import Data, Training
    from recdistill.training.sharding import process_group

    with process_group():
        for line in sys.stdin:
            folder, encoded, described = json.loads(line)
            try:
                job, _ = parse_job(described, "contract", check=problems_of)
                log = EncodedLog.open(Path(encoded))
                fit(Training(compile_job(job, log.spec), job.train, Data.of(log), 0), Path(folder))
                answer = ""
            except Exception as error:  # told to the test, which fails
                answer = repr(error)
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
