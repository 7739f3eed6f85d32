"""Files of `TopK`: how good a member's list was for each user of a split."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recdistill.errors import RunError
from recdistill.evaluation.topk import TopK

COVERAGE = b"coverage"


def write_lists(path: Path, found: TopK) -> None:
    """Write one row per user: its row in the table of users, and a column for each metric."""
    table = pa.table({"user": found.user_V, **found.values})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({COVERAGE: json.dumps(dict(found.coverage))}), path)


def read_lists(path: Path) -> TopK:
    """What `write_lists` has written.

    Raises:
        RunError: the file is missing or holds something else.
    """
    try:
        table = pq.read_table(path)
        coverage = json.loads((table.schema.metadata or {})[COVERAGE])
        values = {name: table[name].to_numpy() for name in table.column_names if name != "user"}
        return TopK(table["user"].to_numpy(), values, coverage)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise RunError(f"{path}: holds no readable lists ({error}); continue the run with --resume") from None
