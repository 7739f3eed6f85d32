"""One exception tree: every error that a user can cause or mend derives from `RecdistillError`.

The command line prints such an error without a traceback and exits with status 2; anything else is a defect of ours and
exits with status 1. A message names the place, what was expected, what was found and what to do about it.
"""

from collections.abc import Sequence


class RecdistillError(Exception):
    """A mistake that the user can mend."""


class SpecError(RecdistillError):
    """A feature spec or a job is wrong; lists every problem found in the file."""

    def __init__(self, place: str, problems: Sequence[str]) -> None:
        self.place = place
        self.problems = tuple(problems)
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__(f"{place}: {count}\n" + "\n".join(f"  - {problem}" for problem in problems))


class LogError(RecdistillError):
    """A log, a side table or an encoded log does not hold what its spec promises."""


class VisibilityError(RecdistillError):
    """Something that may only teach was about to reach a member that serves."""


class ShapeError(RecdistillError):
    """Tensors that must agree in shape do not."""


class TrainingError(RecdistillError):
    """Training cannot start or cannot go on."""


class ExportError(RecdistillError):
    """A serving artefact cannot be made, or does not hold its promises."""


class RunError(RecdistillError):
    """A run folder is incomplete, in use or does not fit the request."""


class MetricError(RecdistillError):
    """Scores and labels from which a metric cannot be computed."""
