"""How members are trained: optimizers, stop rules, batches. The same for all jobs, whatever they distil."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recdistill.spec.graph import METRIC_AT
from recdistill.spec.strict import Strict, refusal

Decay = Annotated[float, Field(ge=0, lt=1)]


class Adam(Strict):
    """Adam; ``weight_decay`` is an L2 penalty (decoupled in ``adamw``)."""

    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)


class Sgd(Strict):
    """Plain gradient steps."""

    lr: float = Field(1e-2, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)


class DenseOptimizer(Strict):
    """One optimizer for dense parameters, named by its key."""

    adam: Adam | None = None
    adamw: Adam | None = None
    sgd: Sgd | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "DenseOptimizer":
        if sum(v is not None for v in (self.adam, self.adamw, self.sgd)) != 1:
            raise refusal("name exactly one of adam, adamw, sgd")
        return self


class TableStep(Strict):
    """Options of the fused optimizers, which move embedding rows inside the backward pass; only touched rows move.

    Attributes:
        lr: learning rate.
        eps: added to the root of the accumulated squares (not used by ``sgd``).
        l2: weight of the penalty ``l2 / 2 * |vector|^2`` on the looked-up vectors, averaged over the rows of a batch.
        l2_rare: the same divided by how often the value occurs in training, so that each value is pulled back as much
            per epoch, however rare it is (pooled lists and hashed columns are left out).
    """

    lr: float = Field(0.02, gt=0)
    eps: float = Field(1e-8, gt=0)
    l2: float = Field(0.0, ge=0)
    l2_rare: float = Field(0.0, ge=0)


class TableOptimizer(Strict):
    """One optimizer for embedding tables, named by its key."""

    rowwise_adagrad: TableStep | None = None
    adagrad: TableStep | None = None
    sgd: TableStep | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "TableOptimizer":
        if sum(v is not None for v in (self.rowwise_adagrad, self.adagrad, self.sgd)) != 1:
            raise refusal("name exactly one of rowwise_adagrad, adagrad, sgd")
        return self

    @property
    def step(self) -> TableStep:
        """The options of the one that is named."""
        return next(v for v in (self.rowwise_adagrad, self.adagrad, self.sgd) if v is not None)

    @property
    def kind(self) -> str:
        """The name of the one that is named."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)


class StopRule(Strict):
    """When a phase ends early, and which of its checkpoints it keeps.

    Attributes:
        monitor: validation metric that must improve: ``logloss``, ``auc``, or a metric of lists such as ``recall@20``;
            by default that of the job's ``ranking``, or ``logloss``.
        every: steps between evaluations; by default one at the end of each epoch.
        patience: evaluations without improvement after which to stop; by default a phase runs to its end.
        keep: ``best`` returns to the best checkpoint at the end of the phase, ``last`` does not.
    """

    monitor: str | None = None
    every: int | None = Field(None, ge=1)
    patience: int | None = Field(None, ge=1)
    keep: Literal["best", "last"] = "best"

    @model_validator(mode="after")
    def _known(self) -> "StopRule":
        if self.monitor not in (None, "logloss", "auc") and METRIC_AT.match(str(self.monitor)) is None:
            raise refusal(f"monitor is {self.monitor!r}; expected logloss, auc, or a metric of lists such as recall@20")
        return self


class Unknown(Strict):
    """Values that are replaced by *unknown* while training, so that its row is learned.

    Attributes:
        rate: the share of values of each vocabulary that is replaced.
        rare: replaces a value that occurs n times with probability ``rare / (rare + n)``, so rare ones most often.
    """

    rate: float = Field(0.0, ge=0, lt=1)
    rare: float = Field(0.0, ge=0)


class TrainSpec(Strict):
    """How members are trained.

    Attributes:
        batch: rows of a step over all processes.
        dense: optimizer of dense parameters.
        tables: optimizer of embedding tables.
        table_std: standard deviation of the initial embedding rows.
        precision: of the dense parts; tables and losses stay in float32.
        stop: the stop rule of phases that have none of their own.
        refit: after choosing the number of steps on validation, train again on train + valid for as many epochs.
        negative_keep_rate: share of the training rows whose main label is 0 that is used; scores are corrected for it.
        keep_labels: share of the rows trained on whose label is kept (an experiment on scarce labels).
        unknown: how often known values are taken for unknown ones.
        micro_batch: rows whose dense parts are computed at once; gradients of the parts add up to those of the batch.
        whole_lists: whether batches hold all rows of a group, so that losses over lists see whole lists.
        checkpoint_every: steps after which an unattended training can go on if it is stopped; by default at the
            beginning of each phase.
        threads: of PyTorch; by default one per core.
    """

    batch: int = Field(4096, ge=1)
    dense: DenseOptimizer = DenseOptimizer(adam=Adam())
    tables: TableOptimizer = TableOptimizer(rowwise_adagrad=TableStep())
    table_std: float = Field(0.01, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    stop: StopRule = StopRule()
    refit: bool = False
    negative_keep_rate: float = Field(1.0, gt=0, le=1)
    keep_labels: float = Field(1.0, gt=0, le=1)
    unknown: Unknown = Unknown()
    micro_batch: int | None = Field(None, ge=1)
    whole_lists: bool = False
    checkpoint_every: int | None = Field(None, ge=1)
    threads: int | None = Field(None, ge=1)

    @property
    def fitted_on(self) -> tuple[str, ...]:
        """The splits that what is kept has been fitted to and trained on."""
        return ("train", "valid") if self.refit else ("train",)
