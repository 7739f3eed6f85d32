"""What a job says of one member: where its parameters come from, what it reads, what it shares, whether it serves."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from recdistill.spec.strict import OneOrMany, Strict, refusal
from recdistill.spec.train import DenseOptimizer, TableOptimizer

SERVING, PRIVILEGED = "serving", "privileged"
WITHOUT = "-"  # before a column that a view leaves out

WIDEST = 2**14  # no vector is longer, so that a slip of a key does not ask for more memory than there is
Width = Annotated[int, Field(ge=4, multiple_of=4, le=2**10)]  # what the embedding kernels take; many stand side by side
Layer = Annotated[int, Field(ge=1, le=WIDEST)]


def _one_key(value: Any) -> Any:
    return {value: {}} if isinstance(value, str) else value


OneKey = Annotated[dict[str, Any], BeforeValidator(_one_key), Field(min_length=1, max_length=1)]


def _of(value: Any) -> Any:
    """The short form of an origin: only whom it follows."""
    return {"of": value} if isinstance(value, str) else value


class Sharing(Strict):
    """Parameters that a member takes from others instead of having its own.

    Attributes:
        tables: the member whose embedding tables are used, for every column that both see; or a member for each column.
        own: columns whose tables stay apart all the same.
        trunk: the member whose trunk (its first layers) is used.
        modules: further parts of the net by their path, and the member in which the same path is used, for example
            ``{net.stack.blocks.0: booster}``, or whose part by its own path, ``booster.net.stack.blocks.2``.

    Source: P6, Xu et al., 2020, for tables, shared column by column (from notes on the paper); O4, Zhou et al., 2018,
        for the first layers.
    Departure: none; the job says what is shared.
    """

    tables: str | dict[str, str] | None = None
    own: list[str] = []
    trunk: str | None = None
    modules: dict[str, str] = {}

    def owner_of(self, column: str) -> str | None:
        """The member whose table a column is looked up in, if that member sees the column; None for an own table."""
        if column in self.own or self.tables is None:
            return None
        return self.tables if isinstance(self.tables, str) else self.tables.get(column)

    @property
    def borrowed(self) -> dict[str, tuple[str, str]]:
        """The owner of each further part of the net, and the part's path there."""
        words = {path: word.partition(".") for path, word in self.modules.items()}
        return {path: (owner, theirs or path) for path, (owner, _, theirs) in words.items()}

    @property
    def table_owners(self) -> list[str]:
        """The members whose tables are used."""
        if self.tables is None:
            return []
        return [self.tables] if isinstance(self.tables, str) else list(dict.fromkeys(self.tables.values()))


class FromRun(Strict):
    """A member of a finished run (of its best seed on validation, or of the one given)."""

    run: str
    member: str
    seed: int | None = None


class Ema(Strict):
    """A moving average of another member's parameters: after every step ``decay`` of the old and the rest of the new.

    Attributes:
        of: the member.
        decay: share of the old average that is kept in one step.
        every: steps between updates; the decay of each is then ``decay ** every``.
    """

    of: str
    decay: float = Field(0.999, gt=0, lt=1)
    every: int = Field(1, ge=1)


class Best(Strict):
    """A copy of another member as it was at its best evaluation, or what the best ones up to then are on average.

    Attributes:
        of: the member, or a moving average of one.
        average: how many of its best evaluations are averaged.
        by: whose evaluations decide about a moving average: its own, or those of the ``original`` that it follows.

    Source: O2, Wei et al., 2019 (``best``, ``ma`` and ``ave_best_k`` of its code).
    Departure: no warm-up epoch; evaluations come by step, not by epoch, and the first one already counts.
    """

    of: str
    average: int = Field(1, ge=1, le=16)
    by: Literal["own", "original"] = "own"


class Snapshot(Strict):
    """A copy of another member, renewed every ``every`` steps (or that fraction, below 1, of the phase).

    Source: O1, Anil et al., 2018, for a peer as it was some steps ago (details unverified); S3, Yang et al., 2019, for
        the end of a cycle of the learning rate.
    Departure: O1: copied within one process; `Remote` exchanges checkpoints. S3: none.
    """

    of: str
    every: float = Field(gt=0)


class Previous(Strict):
    """A copy of another member as it was when the phase, or its repetition, began.

    Source: S2, Furlanello et al., 2018: each generation learns from the one before it.
    Departure: none; a job that keeps the labels in every generation is the paper's BAN+L.
    """

    of: str


class Remote(Strict):
    """A copy of another member as it is in other processes, which run the same job on other rows.

    All of them leave their parameters in a shared folder, each under its own name, and read the others' there.
    With ``copies: n`` it follows n peers.

    Attributes:
        of: the member that this process leaves there.
        exchange: the shared folder.
        name: what this process is called there; no two may have one name.
        every: steps between two visits to the folder (or a fraction, below 1, of the phase).

    Source: O1, Anil et al., 2018 (details unverified).
    Departure: peers that are missing, late or broken are passed over (`training/exchange.py`).
    """

    of: str
    exchange: str
    name: str = Field(pattern=r"^\w[\w.-]*$")
    every: float = Field(gt=0)


class Recorded(Strict):
    """The scores that ``recdistill score`` has written for a member of another run, read by row id.

    Attributes:
        file: the parquet file.
        run: the run that the scores must still belong to; without it the run that the file names, if it exists.
    """

    file: str
    run: str | None = None


class Distortion(Strict):
    """What a member sees of its columns: a distorted view, drawn anew in every step for every row.

    Attributes:
        mask: probability with which a value becomes missing (a number becomes its mean).
        fields: probability with which a whole column is missing in a step.
        truncate: probability with which the older end of a sequence is cut off, at a place drawn evenly.
        noise: standard deviation of what is added to scaled numbers.
        levels: factors of all of these, one of which is drawn for every row; ``[1]`` is one level.
        columns: the columns that are distorted; by default all that the member reads.
        scores: whether evaluation sees the distorted columns as well, at the level given.

    Source: S1, Xu and Liu, 2019 (from notes and unofficial code): a second name of the member (`same`) with a
        distortion of its own is the second view.
    Departure: columns are distorted instead of pictures; the two views pass the net one after the other, so that batch
        statistics see each by itself; answers are compared at temperature 1 in the job, not 3.
    """

    mask: float = Field(0.0, ge=0, lt=1)
    fields: float = Field(0.0, ge=0, lt=1)
    truncate: float = Field(0.0, ge=0, le=1)
    noise: float = Field(0.0, ge=0)
    levels: tuple[Annotated[float, Field(ge=0)], ...] = Field((1.0,), min_length=1)
    columns: tuple[str, ...] = ()
    scores: float | None = Field(None, ge=0)


class Edited(Strict):
    """A net made from another member's by edits, which begins with what they leave of its parameters.

    Attributes:
        of: the member.
        by: edits in turn, ``drop(0)`` or ``shrink(1, keep=0.5)``.
    """

    of: str
    by: OneOrMany = Field(min_length=1)


class ServingView(Strict):
    """A member that serves with other columns than it is trained on."""

    view: OneOrMany


class Embedding(Strict):
    """In training steps a signal stands in place of the vector that would be looked up (a generator's output, say)."""

    embed: str


def _kind(value: Any) -> str:
    return "mapping" if isinstance(value, dict | Strict) else "plain"


View = Annotated[
    Annotated[Embedding, Tag("mapping")] | Annotated[OneOrMany, Tag("plain")],
    Discriminator(_kind),
]
Serves = Annotated[Annotated[ServingView, Tag("mapping")] | Annotated[bool, Tag("plain")], Discriminator(_kind)]


ORIGINS = ("frozen", "ema", "best", "snapshot", "previous", "remote", "same", "scores", "edit")


class MemberSpec(Strict):
    """One member of a job.

    Attributes:
        net: its architecture, ``{name: options}`` (`recdistill/nets`); trained unless another origin is named.
        frozen: a member of a finished run, which does not change.
        ema, best, snapshot, previous, remote: a copy of another member of the job that follows it in its own way.
        same: another member under a second name: the same parameters, seen through another distortion or input.
        scores: no net at all, but scores that an earlier run has written.
        edit: a net of its own, made from another member's by edits; trained.
        view: which columns it reads: ``serving``, ``privileged``, or names of columns; ``-name`` leaves one out. Or
            ``{embed: signal}``.
        inputs: signals that it reads beside its columns; ``live(...)`` lets gradients through.
        outputs: number of values it answers instead of a logit for each label (a critic, a generator).
        labels: the labels that it predicts, by default all of the job.
        distort: the distorted view on which it is trained.
        copies: how many members of this kind there are; ``name[0]`` is the first, ``name[:]`` are all of them.
        folds: each copy learns from no row of its own fold, so that `out_of_fold` can score every row unseen.
        fold: ``[k, n]``: it learns from no row of the fold k of n (what `folds` gives to each copy).
        serve: whether it is the student that is exported; ``{view: ...}`` if it serves with another view.
        compare: whether it is a further student, judged beside controls of its own as the serving member is. Stop rules
            go by the mean over all students.
        dim: width of its embeddings, a multiple of 4.
        dims: columns whose embeddings have another width; a column that borrows a table has the width of its owner.
        pool: how a sequence becomes one vector, ``{column: {name: options}}``: ``mean`` (the default),
            ``target_attention`` or ``self_attention``.
        dropout: share of its embedding outputs dropped while training.
        trunk: widths of first layers that other members may share.
        share: what it takes from other members.
        init: scale of its initial dense parameters; 0 begins at zero.
        dense, tables: its own optimizers where they differ from those of ``train``.
        warm_start: a member of another run to begin from.
    """

    net: OneKey | None = None
    frozen: FromRun | None = None
    ema: Annotated[Ema, BeforeValidator(_of)] | None = None
    best: Annotated[Best, BeforeValidator(_of)] | None = None
    snapshot: Snapshot | None = None
    previous: Annotated[Previous, BeforeValidator(_of)] | None = None
    remote: Remote | None = None
    same: str | None = None
    scores: Annotated[Recorded, BeforeValidator(lambda v: {"file": v} if isinstance(v, str) else v)] | None = None
    edit: Edited | None = None
    view: View = [SERVING]
    inputs: OneOrMany = []
    outputs: int | None = Field(None, ge=1, le=WIDEST)
    labels: OneOrMany = []
    distort: Distortion | None = None
    copies: int = Field(1, ge=1, le=64)
    folds: bool = False
    fold: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=2)]] | None = None
    serve: Serves = False
    compare: bool = False
    dim: Width = 16
    dims: dict[str, Width] = {}
    pool: dict[str, OneKey] = {}
    dropout: float = Field(0.0, ge=0, lt=1)
    trunk: list[Layer] = []
    share: Sharing = Sharing()
    init: float = Field(1.0, ge=0)
    dense: DenseOptimizer | None = None
    tables: TableOptimizer | None = None
    warm_start: FromRun | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> "MemberSpec":
        named = [key for key in ORIGINS if getattr(self, key) is not None]
        if len(named) > 1:
            raise refusal(f"has two origins, {' and '.join(named)}; keep one")
        if self.net is None and named in ([], ["frozen"]):
            raise refusal(f"needs a `net`, or one of {', '.join(ORIGINS)} that can be found")
        if self.net is not None and named not in ([], ["frozen"]):
            raise refusal(f"takes its net from {named[0]}; remove `net`")
        return self

    @property
    def origin(self) -> str | None:
        """The key that says where its parameters come from; None if it is trained from the start."""
        return next((key for key in ORIGINS if getattr(self, key) is not None), None)

    @property
    def of(self) -> str | None:
        """The member of the job that it follows, is a second name of, or is made from."""
        origin = self.following or self.edit
        return self.same if origin is None else origin.of

    @property
    def following(self) -> Ema | Best | Snapshot | Previous | Remote | None:
        """In which way it follows another member."""
        return self.ema or self.best or self.snapshot or self.previous or self.remote

    @property
    def columns(self) -> list[str]:
        """The view that says which columns it reads when it is scored or served."""
        if isinstance(self.serve, ServingView):
            return self.serve.view
        return [SERVING] if isinstance(self.view, Embedding) else self.view

    @property
    def embed(self) -> str | None:
        """The signal in place of its columns while it is trained."""
        return self.view.embed if isinstance(self.view, Embedding) else None
