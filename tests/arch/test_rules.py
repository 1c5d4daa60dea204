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
    *("errors", "extras", "files", "imgsz", "layers", "words", "progress", "run_log", "device"),
    *("graph", "cost", "cut", "criteria", "recover", "runtimes", "options", "train", "accuracy", "adapters"),
    *("bench", "report", "runs", "cli", "__main__"),
)
HOSTS = ("ultralytics", "torchvision", "detectron2", "mayaku")
HOST_CLASSES = {
    *("C2f", "C3", "C3k2", "C2PSA", "SPPF", "A2C2f", "CBLinear", "RepConv", "AAttn", "PSABlock"),
    *("Detect", "v10Detect", "DetectionModel", "DFL", "BaseTrainer", "DetectionTrainer", "ModelEMA"),
}
# surgery.py resizes parameters, copies.py copies them; the adapter rebuilds a head for other classes.
MAKERS_OF_PARAMETERS = {"surgery.py", "copies.py", "adapters"}


def name_of(file):
    return file.relative_to(PACKAGE).as_posix()


def stage_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


TREES = {file: ast.parse(file.read_text("utf-8")) for file in FILES}
OUTSIDE = [file for file in FILES if len(file.relative_to(PACKAGE).parts) < 3 or stage_of(file) != "adapters"]


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


def test_a_stage_imports_only_the_stages_before_it():
    found = []
    for file in FILES:
        stage = stage_of(file)
        for name in imports(at_import_time(TREES[file])) if stage in ORDER else ():
            root, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if root == "yolo_prune" and other in ORDER and ORDER.index(other) > ORDER.index(stage):
                found.append(f"{name_of(file)} imports {name}")
    assert not found


def names_a_host(text, host):
    """Tell whether a line names a host; an operator of a library is no host: ``torchvision::roi_align``."""
    return host in text.lower().replace(f"{host}::", "")


def test_a_host_is_named_in_its_own_adapter_only():
    """Imports inside functions, strings, comments and docstrings count: a second host would miss each of them."""
    found = [
        f"{name_of(file)}:{number} names {host}"
        for file in OUTSIDE
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        for host in HOSTS
        if names_a_host(line, host)
    ]
    assert not found


def test_the_rule_on_hosts_sees_what_it_forbids():
    assert names_a_host("    from yolo_prune.adapters.ultralytics.load import load_detector", "ultralytics")
    assert names_a_host("# as Ultralytics does", "ultralytics")
    assert not names_a_host('"torchvision::roi_align": regions', "torchvision")


def test_a_host_class_is_named_in_adapters_only():
    named = {name_of(file): HOST_CLASSES & set(words_of(TREES[file])) for file in OUTSIDE}
    assert not {name: words for name, words in named.items() if words}


def test_a_file_fits_in_a_readers_head():
    lengths = {name_of(file): len(file.read_text("utf-8").splitlines()) for file in FILES}
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE}


def test_a_function_fits_on_a_screen():
    found = []
    for file in FILES:
        for node in ast.walk(TREES[file]):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                lines = (body[-1].end_lineno - body[0].lineno + 1) if body else 0
                if lines > LONGEST_FUNCTION:
                    found.append(f"{name_of(file)}: {node.name} has {lines} lines")
    assert not found


def faults(node):
    """What a statement does that no statement of the package may do."""
    if isinstance(node, ast.Assert):
        yield "asserts"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
        yield "prints"
    if isinstance(node, ast.ExceptHandler):
        caught = ast.unparse(node.type) if node.type else "everything"
        raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
        if not raises and caught in ("everything", "Exception", "BaseException"):
            yield f"swallows {caught}"
    yield from (f"prints {ast.unparse(size)} itself" for size in printed_sizes(node))


def printed_sizes(node):
    """Image sizes in a sentence that ``size_text`` did not write: a shape would be printed as a tuple."""
    inside = [node.value] if isinstance(node, ast.FormattedValue) else []
    if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("LOGGER."):
        inside = node.args
    return [
        one
        for one in inside
        if isinstance(one, (ast.Name, ast.Attribute)) and ast.unparse(one).endswith("imgsz")
    ]


def test_nothing_asserts_prints_or_swallows_every_error():
    found = [
        f"{name_of(file)}:{node.lineno} {fault}"
        for file in FILES
        for node in ast.walk(TREES[file])
        for fault in faults(node)
    ]
    assert not found


def test_the_rules_on_statements_see_what_they_forbid():
    bad = "assert x\nprint(x)\nf'{a.imgsz} px'\nLOGGER.info('%s', imgsz)\ntry:\n    x()\nexcept Exception:\n    pass\ntry:\n    x()\nexcept:\n    pass"
    seen = [fault for node in ast.walk(ast.parse(bad)) for fault in faults(node)]
    wanted = ["asserts", "prints", "prints a.imgsz itself", "prints imgsz itself"]
    assert sorted(seen) == [*wanted, "swallows Exception", "swallows everything"]


def test_surgery_is_the_only_place_that_makes_parameters():
    found = [
        f"{name_of(file)}:{node.lineno}"
        for file in FILES
        if stage_of(file) not in MAKERS_OF_PARAMETERS and file.name not in MAKERS_OF_PARAMETERS
        for node in ast.walk(TREES[file])
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Parameter"
    ]
    assert not found


def test_importing_the_package_imports_no_host_and_no_runtime():
    code = (
        "import sys, yolo_prune;"
        "found = {'ultralytics', 'onnxruntime', 'torchvision', 'matplotlib'} & set(sys.modules);"
        "sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["yolo_prune.bench", "yolo_prune.report", "yolo_prune.options"])
def test_a_stage_that_needs_no_torch_imports_none(name):
    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
