"""YAML to validated specs. Every problem of a file is collected and raised once."""

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import ValidationError

from recdistill.errors import SpecError
from recdistill.spec.features import FeatureSpec
from recdistill.spec.frozen import described_by_runs, job_file, runs_of
from recdistill.spec.job import Job
from recdistill.spec.members import ORIGINS
from recdistill.spec.strict import Strict, nearest

Loaded = TypeVar("Loaded", FeatureSpec, Job)
MODEST = 64  # in place of what is too large, so that it costs little to look on
KINDS: dict[type, str] = {list: "a list", str: "a text"}
MAKING = ("net", *ORIGINS)  # keys of a member that none of them lacks
EXPECTED = {  # in place of the library's words, by how its kinds of errors begin
    "model_type": "a mapping of keys",
    "model_attributes": "a mapping of keys",
    "dict_type": "a mapping of keys",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_type": "a text",
    "int_": "a whole number",
    "float_": "a number",
    "bool_": "true or false",
}
INDEX = re.compile(r"-?[0-9]{1,9}\Z")
Check = Callable[[Job, FeatureSpec], list[str]]


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, which YAML would silently let win.

    Only ``true`` and ``false`` are booleans, as in YAML 1.2; PyYAML also takes ``on``, the key of a join, and ``no``
    for one.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return node


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def _yaml(text: str) -> Any:
    """What a YAML text says.

    Raises:
        ValueError: it is not YAML.
    """
    try:
        return yaml.load(text, _Loader)
    # a 13th month, or a tag that its value does not suit, leaves PyYAML with errors of other kinds
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        SpecError: the file is missing, not YAML, or not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(str(path), [f"cannot be read: {getattr(error, 'strerror', None) or error}"]) from None
    try:
        content = _yaml(text)
    except ValueError as error:
        raise SpecError(str(path), [f"is {error}"]) from None
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds {KINDS.get(type(content), 'one value')}"
        raise SpecError(str(path), [f"{found} where a mapping of keys is expected"])
    return content


def load_feature_spec(path: str | Path) -> FeatureSpec:
    """The feature spec in a YAML file.

    Raises:
        SpecError: lists every problem of the file.
    """
    return parse_feature_spec(read_yaml(path), str(path))


def parse_feature_spec(raw: Mapping[str, Any], place: str) -> FeatureSpec:
    """A feature spec given as a mapping.

    Raises:
        SpecError: lists every problem.
    """
    spec, problems = _examine(FeatureSpec, raw)
    if spec is None or problems:
        raise SpecError(place, problems)
    return spec


def load_job(
    path: str | Path,
    overrides: Iterable[str] = (),
    *,
    variant: str | None = None,
    log: str | None = None,
    check: Check | None = None,
) -> tuple[Job, FeatureSpec]:
    """A job and the feature spec that it names.

    Args:
        path: the job's YAML file.
        overrides: ``key.path=value`` assignments, applied last.
        variant: one of the job's variants, applied first.
        log: a log to use instead of the job's own.
        check: finds further problems, for example in the meaning of the terms.

    Raises:
        SpecError: lists every problem of the job, and between the job and its spec.
    """
    raw = read_yaml(path)
    if variant is not None:
        raw = _overridden(raw, _variant(raw, variant, str(path)), str(path))
    if log is not None:
        raw["log"] = log
    raw = _overridden(raw, dict(_assignment(text) for text in overrides), str(path))
    return parse_job(raw, str(path), check=check)


def _variant(raw: Mapping[str, Any], name: str, place: str) -> Mapping[str, Any]:
    variants = raw.get("variants")
    known = variants if isinstance(variants, dict) else {}
    if name not in known:
        raise SpecError(place, [f"no variant {name!r}; {nearest(name, map(str, known))}"])
    if not isinstance(known[name], dict):
        raise SpecError(place, [f"variants.{name}: expected a mapping {{key.path: value}}, found {known[name]!r}"])
    return cast(Mapping[str, Any], known[name])


def parse_job(raw: Mapping[str, Any], place: str, *, check: Check | None = None) -> tuple[Job, FeatureSpec]:
    """A job given as a mapping, with the feature spec that it names.

    Raises:
        SpecError: lists every problem of the job, and between the job and its spec.
    """
    jobs = {run: read_yaml(job_file(run)) for run in runs_of(raw) if job_file(run).exists()}
    raw, unknown = described_by_runs(raw, jobs)
    job, problems = _examine(Job, raw)
    if unknown:
        raise SpecError(place, [*unknown, *(problem for problem in problems if "frozen" not in problem)])
    if not isinstance(raw.get("spec"), str):
        raise SpecError(place, problems)
    spec = load_feature_spec(raw["spec"])
    if job is not None:
        problems += job.problems_with(spec)
        if check is not None and not job.loose_ends():
            problems += check(job, spec)
    if job is None or problems:
        raise SpecError(place, list(dict.fromkeys(problems)))
    return job, spec


def _examine(model: type[Loaded], raw: Mapping[str, Any]) -> tuple[Loaded | None, list[str]]:
    """The model, as far as it can be built, and all problems.

    Where a field is wrong, the rest is looked at with that field mended or left out, so that one pass finds everything.
    """
    problems: list[str] = []
    mended: Any = copy.deepcopy(dict(raw))
    for round_ in range(5):
        try:
            parsed: Loaded = model.model_validate(mended)
        except ValidationError as error:
            found = [(_location(e, mended), e) for e in error.errors()]
            if round_ == 0:  # later rounds see what mending has left
                problems = [f"{'.'.join(map(str, loc)) or 'file'}: {_message(e)}" for loc, e in found]
            for loc, e in sorted(found, key=lambda item: _backwards(item[0]), reverse=True):
                _mend(mended, loc, e)
        else:
            return parsed, list(dict.fromkeys([*problems, *parsed.problems()]))
    return None, problems


def assign(raw: Mapping[str, Any], values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A copy of nested mappings and lists with the values at dotted paths replaced or added."""
    result = copy.deepcopy(dict(raw))
    for path, value in values.items():
        node: Any = result
        *parents, last = str(path).split(".")
        for i, key in enumerate(parents):
            if isinstance(node, dict):
                if not isinstance(node.get(key), dict | list):
                    node[key] = {}
                node = node[key]
            else:
                node = node[_index(node, key, ".".join(parents[: i + 1]), place)]
        if isinstance(node, dict):
            node[last] = copy.deepcopy(value)
        else:
            node[_index(node, last, str(path), place)] = copy.deepcopy(value)
    return result


def _overridden(raw: Mapping[str, Any], values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A job with values at dotted paths replaced or added.

    Raises:
        SpecError: a path leads into a member that is neither in the job nor made by these values.
    """
    members = raw.get("members")
    paths = [str(path).split(".") for path in values]
    new = {path[1] for path in paths if path[0] == "members" and (len(path) == 2 or (path[2:] and path[2] in MAKING))}
    known = [*map(str, members), *new] if isinstance(members, dict) else []
    lost = [path for path in paths if known and path[0] == "members" and len(path) > 2 and path[1] not in known]
    if lost:
        raise SpecError(place, [f"{'.'.join(p)}: no member {p[1]!r}; {nearest(p[1], known)}" for p in lost])
    return assign(raw, values, place)


def _index(node: Any, key: str, path: str, place: str) -> int:
    if not isinstance(node, list) or not INDEX.match(key) or not -len(node) <= int(key) < len(node):
        size = f"a list of {len(node)}" if isinstance(node, list) else "no list"
        raise SpecError(place, [f"{path}: {key!r} does not point into {size}; count from 0"])
    return int(key)


def _assignment(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise SpecError(f"--set {text}", ["expected key.path=value, for example train.batch=1024"])
    try:
        return path.strip(), _yaml(value)
    except ValueError as error:
        raise SpecError(f"--set {text}", [f"the value is {error}"]) from None


def _location(error: Any, raw: Any) -> tuple[int | str, ...]:
    """The path as the user wrote it: pydantic adds the names of union members, which are no keys."""
    path: list[int | str] = []
    node = raw
    *_, last = error["loc"] or [None]
    for part in error["loc"]:
        inside = _holds(node, part)
        if inside:
            node = node[part]
        if inside or (part is last and error["type"] == "missing"):
            path.append(part)
    return tuple(path)


def _holds(node: Any, part: int | str) -> bool:
    """Whether a mapping has a key, or a list an index."""
    if isinstance(node, dict):
        return part in node
    return isinstance(node, list) and isinstance(part, int) and part < len(node)


def _backwards(loc: tuple[int | str, ...]) -> list[tuple[int, str]]:
    """A sorting key that puts later elements of a list, and what lies deeper, last."""
    return [(part, "") if isinstance(part, int) else (-1, part) for part in loc]


def _message(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        return "is required"
    if error["type"] == "union_tag_invalid":
        known = str(error["ctx"]["expected_tags"]).replace("'", "").split(", ")
        return f"unknown type {error['ctx']['tag']!r}; {nearest(error['ctx']['tag'], known)}"
    if error["type"] == "union_tag_not_found":
        return "needs a `type`"
    if error["type"] in ("recdistill", "value_error"):
        return message
    found = "nothing" if error["input"] is None else repr(error["input"])
    if error["type"] in ("too_short", "too_long"):
        bound, length = ("least", "min_length") if error["type"] == "too_short" else ("most", "max_length")
        return f"expected at {bound} {error['ctx'][length]} of them, found {error['ctx']['actual_length']}"
    kind = next((kind for part, kind in EXPECTED.items() if error["type"].startswith(part)), None)
    return f"{message[0].lower()}{message[1:]}, found {found}" if kind is None else f"expected {kind}, found {found}"


def _mend(raw: Any, loc: tuple[int | str, ...], error: Any) -> None:
    """Put an allowed value where one is evident, else drop the key; a missing required key takes its parent along."""
    if error["type"] == "missing":
        loc = loc[:-1]
    if not loc:
        return
    node = raw
    for part in loc[:-1]:
        if not _holds(node, part):
            return  # went with something around it
        node = node[part]
    bounds = error.get("ctx", {})
    evident = [bounds[bound] for bound in ("ge", "multiple_of") if bound in bounds]
    evident += [min(bounds["le"], MODEST)] if "le" in bounds else []
    if evident:
        node[loc[-1]] = evident[0]
    elif isinstance(node, dict):
        node.pop(loc[-1], None)
    elif _holds(node, loc[-1]):
        del node[int(loc[-1])]


def dump_yaml(model: Strict) -> str:
    """A spec or a job as YAML with all its defaults."""
    return yaml.safe_dump(model.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True, width=120)
