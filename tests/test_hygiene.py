import ast
import graphlib
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ["unified", "data", "train", "eval", "tests"]
APPLICATIONS = {"data", "train", "eval", "tests"}
OPTIONAL = ["diffusers", "datasets", "gymnasium", "minigrid", "peft"]
MAX_LINES = 600
MAX_FILES = 15
LAYERS = [
    {"memory", "settings"},
    {"files", "command", "configuration", "pretrained", "bf16"},
    {"media"},
    {"conversation"},
    {"model"},
    {"sampling"},
    {"modeling"},
    {"roles"},
    {"play"},
    {"cli"},
    {"__init__"},
]
"""Files and folders of `unified`, from the bottom to the top; each imports only what is below."""


def python_files(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported_names(tree):
    """Top-level names of all absolute imports in a module, the lazy ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def module_name(path):
    """`unified/media/codec.py` as `unified.media.codec`; a package by its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(folder):
    """For each module of a folder, those of the same folder that it imports.

    Imports inside of functions and for type checkers count like all others.
    """
    trees = {module_name(path): ast.parse(path.read_text()) for path in python_files(folder)}
    graph = {name: set() for name in trees}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & set(trees)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} has a relative import; write the whole name"
                assert node.module is not None
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= members & set(trees)
                if members - set(trees):
                    graph[name] |= {node.module} & set(trees)
    return graph


def layer_of(name):
    """How high in `unified` a module stands."""
    top = name.split(".")[1] if "." in name else "__init__"
    (layer,) = [i for i, names in enumerate(LAYERS) if top in names]
    return layer


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy in which nothing but the sources lies about."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ["pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, source)
    for name in [*FOLDERS, "tokenizers_cfg"]:
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    built = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_only_unified(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"unified"}
    assert wheel.name.startswith("unified_tav-")


def test_the_wheel_holds_every_file_of_unified(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT)) for path in python_files("unified")}
    embedded = (ROOT / "unified" / "checkpoints").rglob("*")
    sources |= {str(path.relative_to(ROOT)) for path in embedded if path.is_file()}
    assert {name for name in sources if "__pycache__" not in name} <= names


@pytest.mark.parametrize("path", python_files("unified"), ids=lambda path: path.name)
def test_the_library_never_imports_the_applications(path):
    assert not APPLICATIONS & set(imported_names(ast.parse(path.read_text())))


@pytest.mark.parametrize("folder", ["unified", "data", "train", "eval"])
def test_no_module_imports_itself_by_a_detour(folder):
    order = tuple(graphlib.TopologicalSorter(import_graph(folder)).static_order())
    assert len(order) == len(set(order)) > 1  # a circle raises CycleError, which names it


def test_the_library_imports_downwards_only():
    for name, imported in import_graph("unified").items():
        for other in imported:
            is_same = name.split(".")[:2] == other.split(".")[:2]
            assert is_same or layer_of(other) < layer_of(name), f"{name} imports {other}, upwards"


def test_the_import_graph_sees_lazy_imports_and_those_for_type_checkers(tmp_path, monkeypatch):
    (tmp_path / "unified" / "media").mkdir(parents=True)
    (tmp_path / "unified" / "media" / "__init__.py").write_text("")
    (tmp_path / "unified" / "media" / "codec.py").write_text("def f():\n    import unified.cli\n")
    (tmp_path / "unified" / "cli.py").write_text(
        "if TYPE_CHECKING:\n    from unified.media import codec\nfrom unified.media import other\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    graph = import_graph("unified")
    assert graph["unified.media.codec"] == {"unified.cli"}
    assert graph["unified.cli"] == {"unified.media.codec", "unified.media"}


def test_the_core_imports_without_the_optional_packages():
    # A None in sys.modules makes Python act as if the package were not installed.
    code = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL})); import unified"
    code += "; [getattr(unified, name) for name in ('UnifiedModel', 'UnifiedProcessor', 'Agent')]"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_no_module_imports_torchvision():
    for path in python_files(*FOLDERS):
        assert "torchvision" not in set(imported_names(ast.parse(path.read_text()))), path


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_file_is_too_long_or_named_after_nothing(folder):
    for path in python_files(folder):
        assert path.stem not in {"utils", "util", "common", "helpers", "base", "misc"}, path
        lines = len(path.read_text().splitlines())
        assert lines <= MAX_LINES, f"{path} has {lines} lines, split it by what it is about"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_holds_no_more_files_than_one_can_look_over(folder):
    counts = Counter(path.parent for path in python_files(folder) if path.stem != "__init__")
    for parent, count in counts.items():
        assert count <= MAX_FILES, f"{parent} holds {count} files, split it by what they are about"


def test_tests_of_different_folders_may_share_a_name(tmp_path):
    for folder in ["one", "two"]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test_same.py").write_text("def test_it():\n    assert True\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    options = ["--import-mode=importlib", "--rootdir", str(tmp_path), str(tmp_path)]
    run = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert "2 passed" in run.stdout, run.stdout
