"""The layering of the design, read off the syntax trees: who may import whom, and which libraries have one home."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "recdistill"

# What each layer may import of ours; `errors`, `publish` and the package itself are open to all.
ALLOWED = {
    "spec": {"spec"},
    "losses": {"losses"},
    "nets": {"nets"},
    "edits": {"edits", "nets"},
    "data": {"data", "spec"},
    "distill": {"distill", "spec", "data.batch", "data.transforms.hashing", "nets", "losses", "edits"},
    "evaluation": {"evaluation", "spec", "data"},
    "training": {"training", "distill", "data", "evaluation", "spec", "nets", "losses", "edits"},
    "search": {"search", "training", "distill", "data", "evaluation", "spec", "nets", "losses", "edits"},
    "export": {"export", "spec", "data.batch", "data.transforms", "data.fit", "data.keep_rates", "distill", "nets"},
    "runs": {"runs", "export", "training", "distill", "data", "evaluation", "spec"},
    "cli": {"runs", "export", "data", "evaluation", "spec"},
    "api": {"api", "runs", "search", "training", "distill", "data", "evaluation", "spec", "nets", "losses", "edits"},
}
# Libraries that only some layers may touch.
HOMES = {
    "torch": {"losses", "nets", "edits", "data", "distill", "training", "search", "export", "runs", "api"},
    "torchrec": {"nets", "edits", "training"},
    "fbgemm_gpu": {"training"},
    "polars": {"data"},
    "sklearn": {"evaluation"},
    "jinja2": {"evaluation"},
    "typer": {"cli"},
    "faiss": {"export"},
}
# `runs.doctor` looks at the installation itself.
EXEMPT = {("runs", "torch"): {"doctor.py"}}


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name == "cli.py")


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(path: Path, text: str) -> list[str]:
    here, found = layer(path), []
    for name in imports(ast.parse(text)):
        top, _, inner = name.partition(".")
        if top == "recdistill":
            target = inner.split(".")[0]
            if target in ("", "errors", "publish", "__version__"):
                continue
            allowed = any(inner == a or inner.startswith(f"{a}.") for a in ALLOWED[here])
            partial = any(a.startswith(f"{inner}.") for a in ALLOWED[here])
            if not allowed and not partial:
                found.append(f"{here} may not import {name}")
        elif top in HOMES and here not in HOMES[top] and path.name not in EXEMPT.get((here, top), set()):
            found.append(f"{here} may not import {name}")
    if "torch.jit" in code_of(text) and here != "export":
        found.append(f"{here} mentions torch.jit, which only export may")
    return found


def code_of(text: str) -> str:
    """The code without docstrings, which may speak of anything."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    assert violations(path, path.read_text()) == []


def test_every_layer_was_seen() -> None:
    assert {layer(path) for path in sources()} == set(ALLOWED)
    assert len(sources()) > 60


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("losses/x.py", "from recdistill.training.engine import Engine", "losses may not import"),
        ("spec/x.py", "def f():\n    import torch", "spec may not import torch"),
        ("training/x.py", "import polars as pl", "training may not import polars"),
        ("nets/x.py", "import torch\ntorch.jit.script(f)", "nets mentions torch.jit"),
        ("distill/x.py", "from recdistill.data.encode import encode", "distill may not import"),
    ],
)
def test_the_alarm_rings_for_a_planted_import(file: str, text: str, expected: str) -> None:
    assert any(expected in found for found in violations(PACKAGE / file, text))


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_is_called_by_what_it_is_not(path: Path) -> None:
    assert path.name not in ("utils.py", "common.py", "base.py", "misc.py", "helpers.py")


def test_files_and_functions_stay_readable() -> None:
    long_files = [p for p in sources() if len(p.read_text().splitlines()) > 400]
    assert long_files == []
    long_functions = [
        f"{path.name}: {node.name}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and body_lines(node) > 60
    ]
    assert long_functions == []


def body_lines(node: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = node.body[1] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body[0]
    return (node.end_lineno or 0) - first.lineno + 1


def test_the_engine_names_no_method() -> None:
    rows = ("privileged_features", "hinton", "rocket", "distil_", "codistil", "born_again")
    text = code_of((PACKAGE / "training" / "engine.py").read_text()).lower()
    assert [row for row in rows if row in text] == []


def test_nothing_in_the_project_names_a_path_of_a_machine() -> None:
    found = []
    for path in [
        *PACKAGE.rglob("*"),
        *(ROOT / "jobs").rglob("*"),
        *(ROOT / "feature_specs").rglob("*"),
        *ROOT.glob("*.md"),
    ]:
        if (
            path.is_file()
            and path.suffix in (".py", ".md", ".yaml", ".j2")
            and any(word in path.read_text(encoding="utf-8") for word in ("/home/", "/root/", "/work/", "/Users/"))
        ):
            found.append(path)
    assert found == []


@pytest.mark.parametrize("name", ["errors.py", "publish.py"])
def test_what_is_open_to_all_needs_the_standard_library_alone(name: str) -> None:
    found = {module.partition(".")[0] for module in imports(ast.parse((PACKAGE / name).read_text()))}
    assert found <= sys.stdlib_module_names
