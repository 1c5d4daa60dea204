"""The base install is small, and whatever needs more says which extra installs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from yolo_prune.adapters.hosts import PLAIN_CHECKPOINT, find_host, hosts
from yolo_prune.extras import EXTRAS, missing_extra
from yolo_prune.runtimes import RUNTIMES

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "yolo_prune"
OPTIONAL = {*EXTRAS, *(package for host in hosts() for package in host.packages)}


def project(section):
    """The names of the packages in a list of pyproject.toml, and of the extras that have one."""
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(rf"^{section} = \[(.*?)^\]$", text, re.M | re.S)
    return re.findall(r'"([A-Za-z0-9_-]+)', listed[1])


def extras():
    text = (ROOT / "pyproject.toml").read_text()
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    return set(re.findall(r"^([a-z0-9]+) = \[", section, re.M))


def test_the_base_install_is_three_packages():
    assert project("dependencies") == ["numpy", "pyyaml", "tqdm"]


def test_every_extra_that_a_sentence_names_is_there():
    source = "".join(file.read_text("utf-8") for file in PACKAGE.rglob("*.py"))
    named = set(re.findall(r"yolo-prune\[([a-z0-9,]+)\]", source))
    named |= {*EXTRAS.values(), *(package for host in hosts() for package in host.packages)}
    named |= {entry.extra for entry in RUNTIMES.values()}
    assert named <= extras()
    assert {"all", "dev", "ultralytics", "onnx", "openvino", "ncnn", "torchvision", "timm", "ray"} <= extras()


def run(code, blocked=()):
    """Run code in a process in which some packages are missing."""
    start = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {set(blocked)!r}:\n"
        "            raise ModuleNotFoundError('No module named ' + repr(name), name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=False)


def test_help_needs_the_base_install_alone():
    code = (
        "from yolo_prune.cli import main\n"
        "from yolo_prune.cli.registry import COMMANDS\n"
        "codes = [main(['-h']), main(['--version']), *(main([name, '-h']) for name in COMMANDS)]\n"
        "sys.exit(str(codes) if any(codes) else 0)"
    )
    done = run(code, OPTIONAL | {"cv2"})
    assert (done.returncode, done.stderr) == (0, "")


COMMANDS = [
    (["prune", "model=a.pt", "data=b.yaml", "keep_macs=0.5"], "'prune' needs 'torch'", "ultralytics"),
    (["prune", "model=timm:x", "data=b", "keep_macs=0.5"], "'prune' needs 'torch'", "torchvision"),
    (["train", "model=a.pt", "data=b.yaml"], "'train' needs 'ultralytics'", "ultralytics"),
    (["sweep", "model=a.pt", "data=b.yaml", "keep_macs=0.5"], "'sweep' needs 'torch'", "ultralytics"),
    (["eval", "model=a.pt", "data=b.yaml"], "'eval' needs 'torch'", "ultralytics"),
    (["bench", "model=a.pt,b.pt"], "'bench' needs 'torch'", "ultralytics"),
    (["check", "model=a.pt", "min_fps=1"], "'check' needs 'torch'", "ultralytics"),
    (["export", "model=a.pt"], "'export' needs 'torch'", "ultralytics"),
    (["inspect", "model=a.pt"], "'inspect' needs 'torch'", "ultralytics"),
]


def test_a_command_says_which_extra_it_needs():
    """All in one process: what fails to be imported is not kept."""
    code = (
        "from yolo_prune.cli import main\n"
        f"for words in {[words for words, _, _ in COMMANDS]!r}:\n"
        "    code = main(words)\n"
        "    assert code == 2, (words, code)"
    )
    done = run(code, OPTIONAL | {"cv2"})
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("yolo-prune: error")]
    assert said == [
        f'yolo-prune: error: {text}, which is not installed: pip install "yolo-prune[{extra}]".'
        for _, text, extra in COMMANDS
    ]


def test_a_name_of_the_package_says_it_too():
    done = run("import yolo_prune; yolo_prune.prune_module", {"torch"})
    assert done.stderr.splitlines()[-1] == (
        "yolo_prune.errors.MissingRuntimeError: yolo_prune.prune_module needs 'torch', which is not installed: "
        'pip install "yolo-prune[torch]".'
    )


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'yolo_prune.x'", name="yolo_prune.x"),
        ImportError("libtorch.so: cannot open shared object file", name="torch"),
        ModuleNotFoundError("no name"),
    ],
    ids=["a module of our own", "a broken install", "nothing is known"],
)
def test_what_no_extra_installs_is_not_blamed_on_one(error):
    assert missing_extra(error, "it") is None


def test_the_demo_trains_a_detector_of_the_host_of_plain_checkpoints():
    assert find_host(PLAIN_CHECKPOINT).demo_model == "yolov8n.yaml"
