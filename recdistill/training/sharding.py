"""Embedding tables on TorchRec: one process is world size 1 of the same sharded code.

Rules that keep it exact, each measured (see the tests):
- Each bank is one EmbeddingBagCollection and is looked up once per step. Its pooled output becomes a detached leaf;
  the sum of all gradients on the leaf goes back into the tables once, because fused optimizers step inside every
  backward pass.
- Gradient division is off and losses are divided by global weights, so that the world size changes no gradient.
- Features are laid out in table order and never change their order, because TorchRec freezes it at the first batch.
- Rows are initialised by one generator per (table, block of rows), so that the layout over processes changes no value.
"""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.optim.apply_optimizer_in_backward import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.distributed import comm_ops
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
from torchrec.distributed.types import ShardingPlan
from torchrec.optim import RowWiseAdagrad

from recdistill.data.batch import Batch, View
from recdistill.data.transforms.rows import FIRST
from recdistill.distill.layout import Bank, Feature, Layout, view_of
from recdistill.errors import TrainingError
from recdistill.spec.train import TableOptimizer

INIT_ROWS = 65_536  # rows that one generator initialises


@contextmanager
def process_group() -> Iterator[None]:
    """The default process group: that of torchrun if there is one, otherwise a group of this process alone."""
    if dist.is_initialized():
        yield
        return
    hook = sys.excepthook  # PyTorch wraps it at every initialisation
    if dist.is_torchelastic_launched():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    else:
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    comm_ops.set_gradient_division(False)
    try:
        yield
    finally:
        dist.destroy_process_group()
        sys.excepthook = hook


def device() -> torch.device:
    """Where tables and nets live."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@dataclass
class Lookup:
    """The vectors of a bank for one batch, and the detached leaf on which members work.

    In a bank of tokens ``spans`` holds the lines of each feature; otherwise a line is a row of the batch. ``rarity_BW``
    is 1 / n for each looked-up vector whose value occurs n times in training, if a penalty needs it.
    """

    pooled: Tensor
    leaf_BW: Tensor
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    rarity_BW: Tensor | None = None

    def push(self, l2: float = 0.0, l2_rare: float = 0.0) -> None:
        """Send the gradient collected on the leaf into the tables, where the fused optimizer steps at once.

        Args:
            l2: weight of the penalty ``|vector|^2 / 2`` of each looked-up vector.
            l2_rare: the same, times the rarity of the value.
        """
        gradient = self.leaf_BW.grad
        if gradient is None:
            return
        if l2:
            gradient = gradient.add(self.leaf_BW.detach(), alpha=l2)
        if self.rarity_BW is not None:
            gradient = gradient.addcmul(self.leaf_BW.detach(), self.rarity_BW, value=l2_rare)
        self.pooled.backward(gradient)


class Tables:
    """The sharded embedding tables of all members.

    Args:
        layout: banks and their tables.
        optimizer: the fused optimizer of all tables.
        std: standard deviation of initial rows; the rows for missing and unknown values begin at zero.
        seed: of the initial rows.
        rarity: for tables whose rare values are penalised, 1 / n of each row, 0 where no penalty is wanted.
    """

    def __init__(
        self,
        layout: Layout,
        optimizer: TableOptimizer,
        *,
        std: float,
        seed: int,
        rarity: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.banks = layout.banks
        self.rarity = rarity or {}
        self.model: DistributedModelParallel | None = None
        self._single: dict[int, tuple[Tensor, Tensor]] = {}
        if not self.banks:
            return
        collections = nn.ModuleDict({name: _collection(bank, optimizer) for name, bank in self.banks.items()})
        sharder = EmbeddingBagCollectionSharder()
        plan = {
            name: _plan(module, bank, sharder)
            for (name, module), bank in zip(collections.items(), self.banks.values(), strict=True)
        }
        self.model = DistributedModelParallel(
            collections, device=device(), plan=ShardingPlan(plan), sharders=[sharder], init_data_parallel=False
        )
        for name in self.banks:
            for table, shard, first_row in self.shards(name):
                initialise(shard, f"{name}/{table}", first_row, std=std, seed=seed)

    def shards(self, bank: str) -> Iterator[tuple[str, Tensor, int]]:
        """(table, local rows, number of the first local row) of each table of a bank; the rows can be written."""
        for key, value in self.sharded_state().items():
            prefix = f"tables.{bank}."
            if key.startswith(prefix):
                for shard in value.local_shards():
                    yield key.removeprefix(prefix), shard.tensor, shard.metadata.shard_offsets[0]

    def sharded_state(self) -> dict[str, Any]:
        """The tables as TorchRec's sharded tensors, ``tables.bank.table`` to tensor, for distributed checkpoints."""
        if self.model is None:
            return {}
        return {
            f"tables.{bank}.{key.removeprefix('embedding_bags.').removesuffix('.weight')}": value
            for bank in self.banks
            for key, value in self.model.module[bank].state_dict().items()
        }

    def optimizer_state(self) -> dict[str, Tensor]:
        """The local state of the fused optimizers by name, in its own storage."""
        if self.model is None:
            return {}
        state = self.model.fused_optimizer.state_dict()["state"]
        return {
            f"{parameter}/{key}": shard.tensor
            for parameter, entries in state.items()
            for key, value in entries.items()
            for shard in value.local_shards()
        }

    def look_up(self, name: str, batch: Batch, *, train: bool) -> Lookup:
        """The vectors of a bank's features for a batch; a leaf without gradient unless the bank is trained."""
        assert self.model is not None
        bank = self.banks[name]
        spans: dict[str, tuple[int, int]] = {}
        if bank.tokens:
            features, spans = token_features(bank, batch)
        else:
            features = self._features(bank, batch)
        with torch.set_grad_enabled(train):
            vectors = self.model.module[name](features)
            if vectors.keys() != features.keys():
                raise TrainingError(
                    f"tables of {name}: TorchRec returned {vectors.keys()}; expected the order of the bank"
                )
            pooled = vectors.values()
        rarity_BW = rarity_of(bank, batch, spans, pooled, self.rarity) if train and self.rarity else None
        return Lookup(pooled, pooled.detach().requires_grad_(train), spans, rarity_BW)

    def _features(self, bank: Bank, batch: Batch) -> KeyedJaggedTensor:
        """The bank's columns of a batch, complete with offsets so that TorchRec derives nothing."""
        rows = len(batch)
        values, lengths, per_key = [], [], []
        weights: list[Tensor] = []  # of every value, if some feature of the bank is weighted
        weighted = any(feature.weighted for feature in bank.features)
        run: list[str] = []
        for i, feature in enumerate(bank.features):
            view = view_of(batch, feature.audience)
            if feature.form == "bag":
                bag = view.bag(feature.column)
                values.append(bag.values_L)
                lengths.append(bag.lengths_B)
                per_key.append(bag.values_L.numel())
                if weighted:
                    weights.append(torch.ones(len(bag.values_L)) if bag.weights_L is None else bag.weights_L)
                continue
            run.append(feature.column)
            following = bank.features[i + 1] if i + 1 < len(bank.features) else None
            if following is None or following.form == "bag" or following.audience != feature.audience:
                values.append(view.ids(tuple(run)).reshape(-1))
                lengths.append(self._ones(len(run) * rows)[0])
                per_key += [rows] * len(run)
                if weighted:
                    weights.append(torch.ones(len(run) * rows))
                run = []
        if all(f.form == "single" for f in bank.features):
            length, offset = self._ones(len(bank.features) * rows)
        else:
            length = torch.cat(lengths)
            offset = torch.cat([length.new_zeros(1), torch.cumsum(length, 0)])
        starts = [0]
        for count in per_key:
            starts.append(starts[-1] + count)
        return KeyedJaggedTensor(
            keys=[f.column for f in bank.features],
            values=values[0] if len(values) == 1 else torch.cat(values),
            weights=torch.cat(weights) if weights else None,
            lengths=length,
            offsets=offset,
            stride=rows,
            length_per_key=per_key,
            offset_per_key=starts,
        )

    def _ones(self, count: int) -> tuple[Tensor, Tensor]:
        """Lengths and offsets of ``count`` single values; the same in every step but the last."""
        if count not in self._single:
            if len(self._single) > 64:
                self._single.clear()
            self._single[count] = torch.ones(count, dtype=torch.int64), torch.arange(count + 1)
        return self._single[count]

    def set_learning_rate(self, factor: float) -> None:
        """Scale the learning rate of all tables."""
        if self.model is not None:
            for group in self.model.fused_optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
            self.model.fused_optimizer.zero_grad()
            self.model.fused_optimizer.step()


def rarity_of(
    bank: Bank, batch: Batch, spans: Mapping[str, tuple[int, int]], pooled: Tensor, rarity: Mapping[str, Tensor]
) -> Tensor:
    """The rarity of the value behind each looked-up vector, as wide as the vectors; 0 for pooled lists."""
    found = torch.zeros_like(pooled)
    for feature in bank.features:
        if feature.table not in rarity or feature.form not in ("single", "sequence"):
            continue
        values_L, _, _ = _lines(feature, view_of(batch, feature.audience))
        first, end = spans.get(feature.name, (0, len(batch)))
        start, width = bank.columns(feature)
        found[first:end, start : start + width] = rarity[feature.table][values_L].unsqueeze(1)
    return found


def token_features(bank: Bank, batch: Batch) -> tuple[KeyedJaggedTensor, dict[str, tuple[int, int]]]:
    """What a bank of tokens looks up, and the lines of each feature.

    There is one key per table: the values of its features one after the other, each value (or pooled bag) a line of its
    own. TorchRec's collections of unpooled vectors are an order of magnitude slower on CPU than such bags of one. All
    keys have as many lines as the longest; the others end in empty bags.
    """
    spans: dict[str, tuple[int, int]] = {}
    values: dict[str, list[Tensor]] = {table: [] for table in bank.tables}
    lengths: dict[str, list[Tensor]] = {table: [] for table in bank.tables}
    weights: dict[str, list[Tensor]] = {table: [] for table in bank.tables}
    lines = dict.fromkeys(bank.tables, 0)
    for feature in bank.features:
        values_L, lengths_R, weights_L = _lines(feature, view_of(batch, feature.audience))
        values[feature.table].append(values_L)
        lengths[feature.table].append(lengths_R)
        weights[feature.table].append(weights_L)
        spans[feature.name] = (lines[feature.table], lines[feature.table] + len(lengths_R))
        lines[feature.table] += len(lengths_R)
    longest = max(lines.values())
    for table, count in lines.items():
        lengths[table].append(torch.zeros(longest - count, dtype=torch.int64))
    weighted = any(feature.weighted for feature in bank.features)
    features = KeyedJaggedTensor(
        keys=list(bank.tables),
        values=torch.cat([part for parts in values.values() for part in parts]),
        lengths=torch.cat([part for parts in lengths.values() for part in parts]),
        weights=torch.cat([part for parts in weights.values() for part in parts]) if weighted else None,
        stride=longest,
    )
    return features, spans


def _lines(feature: Feature, view: View) -> tuple[Tensor, Tensor, Tensor]:
    """The values of a feature, the number of them on each line, and their weights."""
    if feature.form == "single":
        values_L = view.ids((feature.column,))[0]
        return values_L, torch.ones(len(values_L), dtype=torch.int64), torch.ones(len(values_L))
    bag = view.bag(feature.column)
    if feature.form == "bag":
        weights_L = torch.ones(len(bag.values_L)) if bag.weights_L is None else bag.weights_L
        return bag.values_L, bag.lengths_B, weights_L
    values_L = bag.values_L if feature.form == "sequence" or bag.gaps_L is None else bag.gaps_L
    return values_L, torch.ones(len(values_L), dtype=torch.int64), torch.ones(len(values_L))


def _collection(bank: Bank, optimizer: TableOptimizer) -> EmbeddingBagCollection:
    tables = [
        EmbeddingBagConfig(
            name=table,
            embedding_dim=bank.dims[table],
            num_embeddings=rows,
            feature_names=[table] if bank.tokens else [f.column for f in bank.features if f.table == table],
            pooling=PoolingType.SUM,
            init_fn=lambda _: None,  # rows are set by `initialise`
        )
        for table, rows in bank.tables.items()
    ]
    weighted = any(feature.weighted for feature in bank.features)
    collection = EmbeddingBagCollection(device=torch.device("meta"), tables=tables, is_weighted=weighted)
    kind, options = fused(optimizer)
    apply_optimizer_in_backward(kind, collection.parameters(), options)
    return collection


def fused(optimizer: TableOptimizer) -> tuple[type[torch.optim.Optimizer], dict[str, float]]:
    """The class that TorchRec maps to a fused kernel, and its options.

    The kernels' own weight decay is left alone: on CPU it is silently ignored.
    """
    options = {"lr": optimizer.step.lr, "eps": optimizer.step.eps}
    if optimizer.sgd is not None:
        return torch.optim.SGD, {"lr": optimizer.step.lr}
    return (RowWiseAdagrad if optimizer.rowwise_adagrad is not None else torch.optim.Adagrad), options


def _plan(module: nn.Module, bank: Bank, sharder: EmbeddingBagCollectionSharder) -> object:
    world = dist.get_world_size()
    # Neighbours stay together, because TorchRec returns the vectors of the first process's tables first.
    placed = {table: table_wise(rank=owner) for table, owner in zip(bank.tables, owners(bank, world), strict=True)}
    return construct_module_sharding_plan(
        module, placed, sharder=sharder, local_size=world, world_size=world, device_type=device().type
    )


def owners(bank: Bank, world: int) -> list[int]:
    """The process that holds each table of a bank: runs of tables of about the same size."""
    sizes = [rows * bank.dims[table] for table, rows in bank.tables.items()]
    centres = [sum(sizes[:i]) + size / 2 for i, size in enumerate(sizes)]
    return [min(world - 1, int(centre / sum(sizes) * world)) for centre in centres]


def initialise(shard: Tensor, name: str, first_row: int, *, std: float, seed: int) -> None:
    """Draw the rows of a shard; values depend on seed, table and row alone, not on the spread over processes."""
    generator = torch.Generator()
    end = first_row + len(shard)
    for start in range(first_row - first_row % INIT_ROWS, end, INIT_ROWS):
        digest = hashlib.blake2b(f"{seed}/{name}/{start}".encode(), digest_size=7).digest()
        generator.manual_seed(int.from_bytes(digest))
        block = torch.empty(INIT_ROWS, shard.shape[1]).normal_(0, std, generator=generator)
        if start == 0:
            block[:FIRST] = 0
        low, high = max(start, first_row), min(start + INIT_ROWS, end)
        shard[low - first_row : high - first_row] = block[low - start : high - start].to(shard.device)
