"""One typed column, fitted by the real `fit`, and its scripted module, saved and loaded again as an artefact is."""

import io

import numpy as np
import polars as pl
import torch

from recdistill.data.fit import fit
from recdistill.export.bare import tensors
from recdistill.export.build import describe_inputs
from recdistill.spec.features import FeatureSpec


def fitted(column, train):
    """The fitted column of a declaration."""
    spec = FeatureSpec.model_validate({"serving": {"typed": column}})
    return fit(spec, train.lazy()).columns["typed"]


class Frame:
    """A column that may read several raw columns."""

    def __init__(self, column, train):
        spec = FeatureSpec.model_validate({"serving": {"typed": column}})
        found = fit(spec, train.lazy())
        self.column = found.columns["typed"]
        self.inputs = describe_inputs(("typed",), spec, found)
        saved = io.BytesIO()
        torch.jit.save(torch.jit.script(self.column.torch()), saved)
        saved.seek(0)
        self.script = torch.jit.load(saved)

    def pipeline(self, frame):
        """The encoded column and its channels by polars."""
        return frame.lazy().select(self.column.polars()).collect()

    def encoded(self, frame):
        """The encoded column alone, as a list."""
        return self.pipeline(frame)["typed"].to_list()

    def artefact(self, frame):
        """The encoded column by TorchScript."""
        return self.ask(*tensors(frame.to_arrow(), self.inputs), len(frame))

    def ask(self, numbers, texts, lengths, rows):
        """The same, of inputs as a server gives them."""
        with torch.jit.optimized_execution(False):  # compiling each module anew would take most of the time
            return self.script(numbers, texts, lengths, rows)


def same_bags(expected, found, weights=None):
    """Bags, and their weights if they have some, are those of the artefact, bit by bit."""
    values_L, lengths_B, weight_L = found
    assert lengths_B.tolist() == [len(bag) for bag in expected]
    assert values_L.tolist() == [row for bag in expected for row in bag]
    flat = [] if weights is None else [weight for bag in weights for weight in bag]
    assert np.array_equal(weight_L.numpy(), np.array(flat, np.float32))


def frame_of(**columns):
    """A frame of series or lists."""
    return pl.DataFrame([pl.Series(name, values) for name, values in columns.items()])
