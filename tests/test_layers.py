"""The shape of the tree: who imports whom, one home for each fact, documents that tell the truth.

Nothing here runs calibit's code on data; the sources are read as text or as syntax trees.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import calibit

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "calibit"
OUTPUTS = {"runs", "build", "dist", ".venv", ".git"}

# Each part may import those to its left (and its neighbours between the same commas), never to
# its right.
CHAINS = (
    (("weight",), ("modules",), ("quantization", "io"), ("hf",)),
    (("measures",), ("comparison",), ("verdict",), ("auditing", "reporting"), ("commands", "cli")),
)
# Imports inside a function that may point to the right: a method that delegates to a higher layer.
DELEGATES = {("comparison", "reporting"), ("comparison", "verdict")}
NOT_IN_MEASURES = {"torch", "transformers"}

FORBIDDEN_INCLUDES = {
    "core": r'^[<"](torch|ATen|c10|pybind11|cuda|cpu/|python/)|Python\.h|\w+intrin\.h',
    "cpu": r'^[<"](torch|ATen|c10|pybind11|cuda|python/)|Python\.h',
    "cuda": r'^[<"](torch|ATen|c10|pybind11|core/|cpu/|python/)|Python\.h',
    "torch": r'^[<"](pybind11|ATen|c10|cuda|torch/extension|python/)|Python\.h',
    "python": r"^<(torch|ATen|c10|cuda)",
}
# What a file compiled with ISA flags may see of C++: C headers and constants only.
ISA_INCLUDES = r'^("core/(kernels|scalar|weight)\.h"|"cpu/\w+\.h"|<\w+\.h>)$'


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def csrc_files(folder: str) -> list[Path]:
    return sorted(
        p for p in (ROOT / "csrc" / folder).rglob("*") if p.suffix in {".cpp", ".h", ".cu"}
    )


def all_files() -> list[Path]:
    tops = [path for path in ROOT.iterdir() if path.name not in OUTPUTS]
    below = (path for top in tops if top.is_dir() for path in top.rglob("*") if path.is_file())
    return [path.relative_to(ROOT) for path in (*below, *(p for p in tops if p.is_file()))]


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """First name below the package: `calibit.measures.ece` belongs to `measures`."""
    return module.split(".")[1] if "." in module else ""


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def import_nodes(node: ast.AST, *, lazy: bool = False) -> Iterator[tuple[ast.stmt, bool]]:
    """Every import below `node` that runs, and whether it stands inside a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, lazy
        elif not is_type_checking(child):
            inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from import_nodes(child, lazy=inside)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Full names imported by a file, and whether lazily; `from a import b` gives `a.b`."""
    module, is_package = module_of(path), path.name == "__init__.py"
    for node, lazy in import_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")
                above = above[: len(above) - node.level + is_package]
                base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", lazy) for alias in node.names)


def test_no_module_is_named_like_a_public_function() -> None:
    """Else importing the module would replace the function under the same name."""
    modules = {part_of(module_of(path)) for path in python_files("python")}
    both = modules & set(calibit.__all__)
    assert "weight" in modules
    assert all(isinstance(getattr(calibit, name), ModuleType) for name in both), both


def rank(chain: tuple[tuple[str, ...], ...], part: str) -> int | None:
    return next((i for i, parts in enumerate(chain) if part in parts), None)


@pytest.mark.parametrize("chain", CHAINS, ids=["weights", "results"])
def test_layers_import_leftwards_only(chain: tuple[tuple[str, ...], ...]) -> None:
    wrong = []
    for path in python_files("python"):
        own = part_of(module_of(path))
        own_rank = rank(chain, own)
        for name, lazy in imports(path) if own_rank is not None else ():
            other = part_of(name) if name.startswith("calibit.") else ""
            other_rank = rank(chain, other)
            allowed = other_rank is None or other_rank <= own_rank
            if not allowed and not (lazy and (own, other) in DELEGATES):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_measures_use_neither_torch_nor_transformers() -> None:
    files = python_files("python/calibit/measures")
    used = {name.split(".")[0] for path in files for name, _ in imports(path)}
    assert files and not used & NOT_IN_MEASURES


def test_no_import_cycles_between_modules() -> None:
    modules = {module_of(path): path for path in python_files("python")}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        eager = [name for name, lazy in imports(path) if not lazy]
        wanted = {n if n in modules else n.rpartition(".")[0] for n in eager}
        graph[module] = {n for n in wanted if n in modules and n not in (module, "calibit")}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module not in done:
            for other in graph[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("folder", FORBIDDEN_INCLUDES)
def test_cpp_layers_include_only_what_they_may(folder: str) -> None:
    wrong = []
    for path in csrc_files(folder):
        for header in re.findall(r"^\s*#include\s+(\S+)", path.read_text(), re.MULTILINE):
            isa = folder == "cpu" and path.stem != "dispatch"
            if re.search(FORBIDDEN_INCLUDES[folder], header) or (
                isa and not re.match(ISA_INCLUDES, header)
            ):
                wrong.append(f"{path.relative_to(ROOT)} includes {header}")
    assert csrc_files(folder) and not wrong


def test_portable_kernels_need_no_x86_header() -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to list the headers with")
    sources = [p for p in csrc_files("core") if p.suffix == ".cpp"]
    sources.append(ROOT / "csrc" / "cpu" / "portable.cpp")
    command = [compiler, "-std=c++20", "-M", f"-I{ROOT / 'csrc'}", *map(str, sources)]
    used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "portable.cpp" in used
    assert not re.findall(r"\S*(?:x86\w*|\w+mmintrin|immintrin)\.h", used)


def test_codebooks_have_one_home() -> None:
    """A value such as 0.69... of NF4 may stand in one source file only: its header."""
    sources = [*csrc_files("."), *python_files("python")]
    texts = {p: p.read_text() for p in sources if "tests" not in p.relative_to(ROOT).parts}
    checked = 0
    for spec in calibit.formats().values():
        for value in spec.codebook or ():
            digits = f"{abs(value):.5f}"
            if float(digits) * 1000 % 1 == 0:  # 0.5, 0.125: round numbers occur anywhere
                continue
            homes = [str(p.relative_to(ROOT)) for p, text in texts.items() if digits[:-1] in text]
            assert len(homes) <= 1, f"{digits[:-1]} of {spec.name} stands in {homes}"
            checked += len(homes)
    assert checked > 0


def test_version_is_the_newest_of_the_changelog() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert version is not None and newest is not None
    assert version[1] == newest[1] == calibit.__version__


def named_files(text: str) -> set[str]:
    """What a document names as files of the tree: in backticks, in links, in listings of paths."""
    names = set(re.findall(r"`([\w./-]+)`", text))
    names |= {link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link}
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and p.name not in OUTPUTS}
    suffixes = (".py", ".md", ".cpp", ".h", ".cu", ".sh", ".toml", ".ipynb", ".cmake")
    return {
        name
        for name in names
        if name.split("/")[0] not in OUTPUTS
        and (name.endswith(suffixes) or ("/" in name and name.split("/")[0] in folders))
    }


def test_documents_name_only_files_that_exist() -> None:
    files = [f"/{path.as_posix()}" for path in all_files()]
    documents = [ROOT / path for path in all_files() if path.suffix == ".md"]
    missing = [
        f"{document.relative_to(ROOT)} names {name}"
        for document in documents
        for name in named_files(document.read_text(encoding="utf-8"))
        if not any(path.endswith(f"/{name}") for path in files) and not (ROOT / name).is_dir()
    ]
    assert {"README.md", "CONTRIBUTING.md"} <= {document.name for document in documents}
    assert not missing


def test_tests_are_bound_to_no_machine() -> None:
    pattern = re.compile(
        r"""["'](?:/(?:home|root|tmp|work|mnt|opt|usr|var|data)\b|[A-Z]:\\)|cuda:\d"""
    )
    wrong = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in python_files("tests")
        if (found := pattern.search(path.read_text(encoding="utf-8")))
    ]
    assert not wrong


def outside_sources() -> Iterator[tuple[str, str]]:
    """Name and Python source of every benchmark and notebook."""
    for path in python_files("benchmarks"):
        yield path.name, path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        yield path.name, "\n\n".join(code)


def test_notebooks_and_benchmarks_use_the_public_package_only() -> None:
    sources = dict(outside_sources())
    private = re.compile(r"\bcalibit(?:\.\w+)*\._\w|\bimport _\w|torch\.ops\b")
    assert sources
    assert not [name for name, source in sources.items() if private.search(source)]


def test_notebooks_define_no_long_function() -> None:
    for name, source in outside_sources():
        if name.endswith(".ipynb"):
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.FunctionDef):
                    assert (node.end_lineno or 0) - node.lineno < 10, f"{name}: {node.name}"
