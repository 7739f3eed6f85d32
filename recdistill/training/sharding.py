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
import os
import sys
from collections.abc import Container, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from urllib.parse import unquote

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

from recdistill.data.batch import Batch
from recdistill.data.transforms.rows import FIRST
from recdistill.distill.layout import Bank, Layout, table_key, view_of
from recdistill.spec.train import TableOptimizer
from recdistill.training.lookup import Lookup, in_order, rarity_of, token_features

INIT_ROWS = 65_536  # rows that one generator initialises


@contextmanager
def process_group() -> Iterator[None]:
    """The default process group: that of torchrun if there is one, otherwise a group of this process alone."""
    if dist.is_initialized():
        yield
        return
    hook = sys.excepthook  # PyTorch wraps it at every initialisation
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"  # batches and losses stay on the CPU
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if dist.is_torchelastic_launched():
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    comm_ops.set_gradient_division(False)
    try:
        yield
    finally:
        dist.destroy_process_group()
        sys.excepthook = hook


def device() -> torch.device:
    """Where tables and nets live; batches, signals, losses and memories stay on the CPU.

    So there are three crossings: what is looked up (`Tables.look_up`), what a net receives (`assemble`), and what it
    answers (`Play`).
    """
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def at_work() -> AbstractContextManager[object]:
    """While nets work: what they make anew lies where they live."""
    return nullcontext() if device().type == "cpu" else device()


class Tables:
    """The sharded embedding tables of all members.

    Args:
        layout: banks and their tables.
        optimizer: the fused optimizer of tables.
        std: standard deviation of initial rows; the rows for missing and unknown values begin at zero.
        seed: of the initial rows.
        rarity: for tables whose rare values are penalised, 1 / n of each row, 0 where no penalty is wanted.
        follows: members whose tables are copied from another one's now and then; they lie beside the originals.
        own: the optimizers of members whose tables have another one.

    Attributes:
        steps: the options of each bank's optimizer.
    """

    def __init__(
        self,
        layout: Layout,
        optimizer: TableOptimizer,
        *,
        std: float,
        seed: int,
        rarity: Mapping[str, Tensor] | None = None,
        follows: Mapping[str, str] | None = None,
        own: Mapping[str, TableOptimizer] | None = None,
    ) -> None:
        self.banks = layout.banks
        optimizers = {name: (own or {}).get(bank.owner, optimizer) for name, bank in self.banks.items()}
        self.steps = {name: found.step for name, found in optimizers.items()}
        self.rarity = rarity or {}
        self.std = std
        self.rate = 1.0
        self.model: DistributedModelParallel | None = None
        self._single: dict[int, tuple[Tensor, Tensor]] = {}
        if not self.banks:
            return
        collections = nn.ModuleDict({name: _collection(bank, optimizers[name]) for name, bank in self.banks.items()})
        sharder = EmbeddingBagCollectionSharder()
        placed = placements(layout, follows or {}, dist.get_world_size())
        plan = {name: _plan(module, placed[name], sharder) for name, module in collections.items()}
        self.model = DistributedModelParallel(
            collections, device=device(), plan=ShardingPlan(plan), sharders=[sharder], init_data_parallel=False
        )
        for name in self.banks:
            self._draw(name, seed)

    def _draw(self, bank: str, seed: object) -> None:
        for table, shard, first_row in self.shards(bank):
            initialise(shard, f"{bank}/{table}", first_row, std=self.std, seed=seed)

    def begin_anew(self, bank: str, seed: object) -> None:
        """Fresh rows for the tables of a bank, and an optimizer that remembers nothing of them."""
        self._draw(bank, seed)
        for name, state in self.optimizer_state().items():
            if name.startswith(f"{bank}."):
                state.zero_()

    def shards(self, bank: str) -> Iterator[tuple[str, Tensor, int]]:
        """(table, local rows, number of the first local row) of each table of a bank; the rows can be written."""
        for key, value in self.sharded_state().items():
            prefix = table_key(bank, "")
            if key.startswith(prefix):
                for shard in value.local_shards():
                    yield key.removeprefix(prefix), shard.tensor, shard.metadata.shard_offsets[0]

    def sharded_state(self, banks: Container[str] | None = None) -> dict[str, Any]:
        """The tables, of all banks or of some, as TorchRec's sharded tensors, ``tables.bank.table`` to tensor."""
        if self.model is None:
            return {}
        return {
            table_key(bank, named(key.removeprefix("embedding_bags.").removesuffix(".weight"))): value
            for bank in self.banks
            if banks is None or bank in banks
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
        lines: dict[str, Tensor] = {}
        if bank.tokens:
            features, spans = token_features(bank, batch)
            unpooled = (f for f in bank.features if f.form in ("sequence", "gaps"))
            lines = {f.name: view_of(batch, f.audience).bag(f.column).lengths_B for f in unpooled}
        else:
            features = self._features(bank, batch)
        if device().type != "cpu":
            features = features.to(device())
        with torch.set_grad_enabled(train):
            vectors = self.model.module[name](features)
            pooled = vectors.values()
            if vectors.keys() != features.keys():  # it returns them process by process
                pooled = pooled[:, in_order(bank, vectors.keys(), features.keys())]
        rarity_BW = rarity_of(bank, batch, spans, pooled, self.rarity) if train and self.rarity else None
        return Lookup(pooled, pooled.detach().requires_grad_(train), spans, lines, rarity_BW)

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
        if self.model is not None and factor != self.rate:
            self.rate = factor
            for group in self.model.fused_optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
            self.model.fused_optimizer.zero_grad()
            self.model.fused_optimizer.step()


def _collection(bank: Bank, optimizer: TableOptimizer) -> EmbeddingBagCollection:
    tables = [
        EmbeddingBagConfig(
            name=module_name(table),
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


def module_name(table: str) -> str:
    """A table's name as a name of a module, which holds no dot and is no attribute of its container.

    >>> module_name("item.sku"), module_name("keys"), module_name("item_sku")
    ('item%2Esku', '%6Beys', 'item_sku')
    """
    name = table.replace("%", "%25").replace(".", "%2E")
    return f"%{ord(name[0]):02X}{name[1:]}" if hasattr(nn.ModuleDict(), name) else name


def named(module: str) -> str:
    """The table of a module's name.

    >>> named(module_name("item.sku")), named(module_name("keys"))
    ('item.sku', 'keys')
    """
    return unquote(module)


def fused(optimizer: TableOptimizer) -> tuple[type[torch.optim.Optimizer], dict[str, float]]:
    """The class that TorchRec maps to a fused kernel, and its options.

    The kernels' own weight decay is left alone: on CPU it is silently ignored.
    """
    options = {"lr": optimizer.step.lr, "eps": optimizer.step.eps}
    if optimizer.sgd is not None:
        return torch.optim.SGD, {"lr": optimizer.step.lr}
    return (RowWiseAdagrad if optimizer.rowwise_adagrad is not None else torch.optim.Adagrad), options


def _plan(module: nn.Module, placed: Mapping[str, int], sharder: EmbeddingBagCollectionSharder) -> object:
    world = dist.get_world_size()
    return construct_module_sharding_plan(
        module,
        {module_name(table): table_wise(rank=owner) for table, owner in placed.items()},
        sharder=sharder,
        local_size=world,
        world_size=world,
        device_type=device().type,
    )


def placements(layout: Layout, follows: Mapping[str, str], world: int) -> dict[str, dict[str, int]]:
    """The process that holds each table of each bank: runs of tables of about the same size.

    Neighbours stay together, because TorchRec returns the vectors of the first process's tables first. The tables of a
    member that follows another one lie where that one looks the same columns up, so that a copy needs no exchange.
    """
    placed: dict[str, dict[str, int]] = {}
    waiting = dict(layout.banks)
    while waiting:
        free = [n for n, bank in waiting.items() if not {*_beside(bank, layout, follows).values()} & waiting.keys()]
        name = (free or [*waiting])[0]  # members that follow each other in a circle begin somewhere
        bank = waiting.pop(name)
        placed[name] = dict(zip(bank.tables, owners(bank, world), strict=True))
        for (table, theirs), other in _beside(bank, layout, follows).items():
            if other in placed:
                placed[name][table] = placed[other][theirs]
    return placed


def _beside(bank: Bank, layout: Layout, follows: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """For each table of a follower's bank, and the original's table of the same column, the original's bank."""
    original = follows.get(bank.owner)
    banks = () if original is None else layout.members[original].banks
    known = {feature.name: (name, feature.table) for name in banks for feature in layout.banks[name].features}
    found = {}
    for feature in bank.features:
        if feature.name in known and known[feature.name][0] in layout.banks:
            other, table = known[feature.name]
            found[feature.table, table] = other
    return found


def owners(bank: Bank, world: int) -> list[int]:
    """The process that holds each table of a bank."""
    sizes = [rows * bank.dims[table] for table, rows in bank.tables.items()]
    centres = [sum(sizes[:i]) + size / 2 for i, size in enumerate(sizes)]
    return [min(world - 1, int(centre / sum(sizes) * world)) for centre in centres]


def initialise(shard: Tensor, name: str, first_row: int, *, std: float, seed: object) -> None:
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
