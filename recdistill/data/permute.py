"""The shuffled control's data: privileged columns permuted jointly over the rows of a split, keyed by row id.

Rows are sorted by two different hashes of their ids; what stands at place k of the second order is given to the row at
place k of the first. The permutation depends on seed, split and row ids alone, not on the order of the log.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recdistill.data.encoded import EncodedLog
from recdistill.data.thinning import drawn
from recdistill.publish import published


def permute_privileged(log: EncodedLog, split: str, columns: tuple[str, ...], *, seed: int, out: Path) -> None:
    """Write the permuted post-event files of a split below ``out``, with the row groups of the originals.

    The folder of a split appears only when it is complete. The chosen columns of a whole split are held in memory.
    """
    files = log.files(split, "post_event")
    names = [c for c in log.views["post_event"] if c in columns or c.partition("/")[0] in columns]  # with channels
    table = pa.concat_tables([pq.read_table(f, columns=["row_id", *names]) for f in files]).combine_chunks()
    row_id = table["row_id"].to_numpy()
    takers = np.argsort(drawn(row_id, f"permute {split} takers", seed), kind="stable")
    givers = np.argsort(drawn(row_id, f"permute {split} givers", seed), kind="stable")
    source = np.empty_like(takers)
    source[takers] = givers
    permuted = table.take(pa.array(source)).set_column(0, "row_id", table["row_id"])
    start = 0
    with published(out / split) as work:
        work.mkdir()
        for file in files:
            groups = pq.ParquetFile(file).metadata
            with pq.ParquetWriter(work / file.name, permuted.schema, compression="lz4") as writer:
                for rows in (groups.row_group(k).num_rows for k in range(groups.num_row_groups)):
                    writer.write_table(permuted.slice(start, rows), row_group_size=max(rows, 1))
                    start += rows
