"""Reference scores of a log: columns to which the student is compared, such as those of the system in use."""

import numpy as np

from recdistill.data.encoded import EncodedLog
from recdistill.data.scores import Scored
from recdistill.errors import LogError

SPLITS = ("valid", "test")


def references(log: EncodedLog, label: str) -> dict[str, dict[str, Scored]]:
    """The log's own reference scores on the labelled rows of each split.

    Raises:
        LogError: some of these rows have none.
    """
    found: dict[str, dict[str, Scored]] = {name: {} for name in log.spec.reference}
    for split in SPLITS if found else ():
        frame = log.labels(split).collect()
        label_N = frame[label].to_numpy()
        known_N = ~np.isnan(label_N)
        for name in found:
            scored = Scored(
                frame["row_id"].to_numpy()[known_N], label_N[known_N], frame[f"reference:{name}"].to_numpy()[known_N]
            )
            if unscored := int((~np.isfinite(scored.logit_N)).sum()):
                raise LogError(
                    f"reference {name!r}: {unscored} of {len(scored.logit_N)} labelled {split} rows have no finite "
                    "score, so that it cannot be compared; fill them, or leave it out of the spec's `reference`"
                )
            found[name][split] = scored
    return found
