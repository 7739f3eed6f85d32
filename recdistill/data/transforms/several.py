"""Several raw columns as one key: the hashes of their values in turn, alike in the pipeline and in the artefact."""

from collections.abc import Mapping

import polars as pl
import torch
from torch import Tensor, nn

from recdistill.data.transforms.hashing import hash_in_turn, hash_texts_tensor, splitmix64_tensor
from recdistill.data.transforms.raw import keyed_by_text, keys, keys_tensor


def key_hashes(sources: Mapping[str, pl.DataType], place: str) -> pl.Expr:
    """The hash of several keys in turn, Int64; a missing key has a hash as well."""
    parts = [keys(pl.col(source), dtype, place).alias(source) for source, dtype in sources.items()]
    return pl.struct(parts).map_batches(
        lambda columns: pl.Series(hash_in_turn(columns)), return_dtype=pl.Int64, is_elementwise=True
    )


def some_known(sources: Mapping[str, pl.DataType], place: str) -> pl.Expr:
    """Whether at least one key is not missing."""
    return pl.any_horizontal(keys(pl.col(source), dtype, place).is_not_null() for source, dtype in sources.items())


class KeyHashes(nn.Module):
    """Both inside the artefact."""

    sources: list[str]
    text: list[bool]

    def __init__(self, raw: Mapping[str, pl.DataType]) -> None:
        super().__init__()
        self.sources = list(raw)
        self.text = [keyed_by_text(dtype) for dtype in raw.values()]

    def forward(self, numbers: dict[str, Tensor], texts: dict[str, list[str]], batch: int) -> tuple[Tensor, Tensor]:
        """The hash of each row's keys, int64 (B,), and whether one of them is known, (B,)."""
        total_B = torch.zeros(batch, dtype=torch.int64)
        known_B = torch.zeros(batch, dtype=torch.bool)
        for i, source in enumerate(self.sources):
            if self.text[i]:
                values = texts[source] if source in texts else [""] * batch
                present: list[bool] = []
                for value in values:
                    present.append(len(value) > 0)
                hash_B = hash_texts_tensor(values)
                known_B = known_B | torch.tensor(present, dtype=torch.bool)
            else:
                key_B = torch.full((batch,), -9223372036854775807 - 1, dtype=torch.int64)
                if source in numbers:
                    key_B = keys_tensor(numbers[source])
                hash_B = splitmix64_tensor(key_B)
                known_B = known_B | (key_B != -9223372036854775807 - 1)
            total_B = splitmix64_tensor(total_B ^ hash_B)
        return total_B, known_B
