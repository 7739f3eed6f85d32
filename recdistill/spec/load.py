"""YAML to validated specs. Every problem of a file is collected and raised once."""

import copy
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from recdistill.errors import SpecError
from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job
from recdistill.spec.strict import Strict, nearest

Loaded = TypeVar("Loaded", FeatureSpec, Job)
Check = Callable[[Job, FeatureSpec], list[str]]


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, which YAML would silently let win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        SpecError: the file is missing, not YAML, or not a mapping.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys)  # noqa: S506, safe by construction
    except OSError as error:
        raise SpecError(str(path), [f"cannot be read: {error.strerror or error}"]) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError(str(path), [f"is not valid YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(content, dict):
        raise SpecError(str(path), [f"holds {type(content).__name__} where a mapping of keys is expected"])
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
        variants = raw.get("variants") or {}
        if variant not in variants:
            raise SpecError(str(path), [f"no variant {variant!r}; {nearest(variant, variants)}"])
        raw = assign(raw, variants[variant], str(path))
    if log is not None:
        raw["log"] = log
    raw = assign(raw, dict(_assignment(text) for text in overrides), str(path))
    return parse_job(raw, str(path), check=check)


def parse_job(raw: Mapping[str, Any], place: str, *, check: Check | None = None) -> tuple[Job, FeatureSpec]:
    """A job given as a mapping, with the feature spec that it names.

    Raises:
        SpecError: lists every problem of the job, and between the job and its spec.
    """
    job, problems = _examine(Job, raw)
    if not isinstance(raw.get("spec"), str):
        raise SpecError(place, problems)
    spec = load_feature_spec(raw["spec"])
    if job is not None:
        problems += [*job.problems_with(spec), *(check(job, spec) if check else [])]
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
            parsed = model.model_validate(mended)
        except ValidationError as error:
            found = [(_location(e, mended), e) for e in error.errors()]
            if round_ == 0:  # later rounds see what mending has left
                problems = [f"{'.'.join(map(str, loc)) or 'file'}: {_message(e)}" for loc, e in found]
            for loc, e in sorted(found, key=lambda item: str(item[0]), reverse=True):
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


def _index(node: Any, key: str, path: str, place: str) -> int:
    if not isinstance(node, list) or not key.lstrip("-").isdigit() or not -len(node) <= int(key) < len(node):
        size = f"a list of {len(node)}" if isinstance(node, list) else "no list"
        raise SpecError(place, [f"{path}: {key!r} does not point into {size}; count from 0"])
    return int(key)


def _assignment(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise SpecError(f"--set {text}", ["expected key.path=value, for example train.batch=1024"])
    try:
        return path.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {text}", [f"the value is not valid YAML: {' '.join(str(error).split())}"]) from None


def _location(error: Any, raw: Any) -> tuple[int | str, ...]:
    """The path as the user wrote it: pydantic adds the names of union members, which are no keys."""
    path: list[int | str] = []
    node = raw
    *_, last = error["loc"] or [None]
    for part in error["loc"]:
        inside = part in node if isinstance(node, dict) else isinstance(node, list) and isinstance(part, int)
        if inside:
            node = node[part]
        if inside or (part is last and error["type"] == "missing"):
            path.append(part)
    return tuple(path)


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
    return f"{message[0].lower()}{message[1:]}, found {error['input']!r}"


def _mend(raw: Any, loc: tuple[int | str, ...], error: Any) -> None:
    """Put an allowed value where one is evident, otherwise drop the key; a missing required key takes its parent along."""
    if error["type"] == "missing":
        loc = loc[:-1]
    if not loc:
        return
    node = raw
    for part in loc[:-1]:
        node = node[part]
    evident = [error.get("ctx", {}).get(bound) for bound in ("ge", "le", "multiple_of") if bound in error.get("ctx", {})]
    if evident:
        node[loc[-1]] = evident[0]
    elif isinstance(node, dict):
        node.pop(loc[-1], None)
    elif int(loc[-1]) < len(node):
        del node[int(loc[-1])]


def dump_yaml(model: Strict) -> str:
    """A spec or a job as YAML with all its defaults."""
    return yaml.safe_dump(model.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True, width=120)
