"""The rules of the code base as tests: who may import whom, who may name a host, how long a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "yolo_prune"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 350, 50

# The data flow. At import time a stage uses only the stages before it; a stage that calls a host imports the
# adapter inside the function that needs it.
ORDER = (
    *("errors", "files", "progress", "config", "device", "randomness"),
    *("graph", "cost", "score", "cut", "structure", "recover", "sparsify", "distill", "retrain", "inrun"),
    *("stored", "checkpoint", "evaluate", "bench", "report", "adapters"),
    *("inspection", "workspace", "preflight", "measure", "run", "sweep"),
    *("demo_data", "demo", "commands", "cli", "__main__"),
)
HOSTS = ("ultralytics", "torchvision", "detectron2", "mayaku")
HOST_CLASSES = {
    *("C2f", "C3", "C3k2", "C2PSA", "SPPF", "A2C2f", "CBLinear", "RepConv", "AAttn", "PSABlock"),
    *("Detect", "v10Detect", "DetectionModel", "DFL", "BaseTrainer", "DetectionTrainer", "ModelEMA"),
}
# surgery.py resizes parameters, copies.py copies them; the adapter rebuilds a head for other classes.
MAKERS_OF_PARAMETERS = {"surgery.py", "copies.py", "adapters"}


def tree_of(file):
    return ast.parse(file.read_text("utf-8"))


def name_of(file):
    return file.relative_to(PACKAGE).as_posix()


def stage_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(nodes):
    """Dotted names that import statements among ``nodes`` bring in."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ([f"{node.module}.{alias.name}" for alias in node.names])


def at_import_time(tree):
    """Statements that run when the file is imported, without the blocks of ``if TYPE_CHECKING``."""
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        pending += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def docstrings(tree):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            yield node.body[0].value


def words_of(tree):
    """Identifiers and string constants of a file, without its docstrings."""
    skipped = {id(node) for node in docstrings(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


def test_every_module_has_its_place_in_the_order():
    missing = {stage_of(file) for file in FILES} - {*ORDER, "__init__"}
    assert not missing, f"add {missing} to ORDER where the data flow puts it"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_stage_imports_only_the_stages_before_it(file):
    stage = stage_of(file)
    if stage == "__init__":
        return
    for name in imports(at_import_time(tree_of(file))):
        parts = name.split(".")
        if parts[0] == "yolo_prune" and len(parts) > 1 and parts[1] in ORDER and parts[1] != stage:
            assert ORDER.index(parts[1]) < ORDER.index(stage), f"{stage} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_host_is_imported_in_adapters_only(file):
    if stage_of(file) == "adapters":
        return
    found = [name for name in imports(ast.walk(tree_of(file))) if name.split(".")[0] in HOSTS]
    assert not found


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_host_class_is_named_in_adapters_only(file):
    if stage_of(file) != "adapters":
        assert not HOST_CLASSES & set(words_of(tree_of(file)))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_fits_in_a_readers_head(file):
    assert len(file.read_text("utf-8").splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_function_fits_on_a_screen(file):
    for node in ast.walk(tree_of(file)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = (body[-1].end_lineno - body[0].lineno + 1) if body else 0
            assert lines <= LONGEST_FUNCTION, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_nothing_asserts_prints_or_swallows_every_error(file):
    for node in ast.walk(tree_of(file)):
        assert not isinstance(node, ast.Assert)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print"
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            assert raises or caught not in ("everything", "Exception", "BaseException")


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_surgery_is_the_only_place_that_makes_parameters(file):
    made = [
        node
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Parameter"
    ]
    allowed = stage_of(file) in MAKERS_OF_PARAMETERS or file.name in MAKERS_OF_PARAMETERS
    assert allowed or not made


def test_importing_the_package_imports_no_host_and_no_runtime():
    code = (
        "import sys, yolo_prune;"
        "found = {'ultralytics', 'onnxruntime', 'torchvision', 'matplotlib'} & set(sys.modules);"
        "sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["yolo_prune.bench", "yolo_prune.report", "yolo_prune.config"])
def test_a_stage_that_needs_no_torch_imports_none(name):
    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
