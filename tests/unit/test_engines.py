"""Trials side by side on a real Ray on this machine: two workers, a killed one, and a sweep that goes on."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

import yolo_prune
from yolo_prune.errors import ConfigError, MissingRuntimeError
from yolo_prune.options import PruneConfig
from yolo_prune.runs import engines
from yolo_prune.runs.configure import make_config
from yolo_prune.runs.engines import Room, run_here, run_on_ray

TRIALS = {"model": "best.pt", "data": "d.yaml", "keep_macs": 0.5}


def trial(folder, name: str, **changes) -> PruneConfig:
    return make_config(PruneConfig, {**TRIALS, "project": str(folder), "name": name, **changes})


@pytest.fixture(scope="module")
def ray():
    """A Ray of two CPUs, whose workers find the package under test."""
    ray = pytest.importorskip("ray")
    paths = [str(Path(yolo_prune.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}},
    )
    yield ray
    ray.shutdown()


def test_ray_is_asked_for_by_name(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        MissingRuntimeError, match=r'^engine=ray needs Ray: pip install "yolo-prune\[ray\]"\.$'
    ):
        run_on_ray([trial(tmp_path, "a")], lambda _: "", Room())


def test_without_a_cluster_trials_run_here_in_their_order(tmp_path):
    ran = []
    outcomes = run_here([trial(tmp_path, "a"), trial(tmp_path, "b")], lambda one: ran.append(one.name) or "")
    assert (ran, outcomes) == (["a", "b"], ["", ""])


def test_two_trials_run_side_by_side_in_workers_of_their_own(ray, tmp_path):
    def meet(one):
        """Fail unless both are there at once."""
        Path(one.project, one.name).write_text(str(os.getpid()))
        until = time.monotonic() + 60
        while len(list(Path(one.project).iterdir())) < 2:
            if time.monotonic() > until:
                return "alone"
            time.sleep(0.05)
        return ""

    assert run_on_ray([trial(tmp_path, "a"), trial(tmp_path, "b")], meet, Room()) == ["", ""]
    pids = {Path(tmp_path, name).read_text() for name in "ab"}
    assert len(pids) == 2
    assert str(os.getpid()) not in pids


def test_a_trial_whose_worker_is_killed_goes_on_from_what_it_left(ray, tmp_path):
    def killed_once(one):
        folder = Path(one.project, one.name)
        folder.mkdir(exist_ok=True)
        if one.name == "a" and not one.resume:
            (folder / "args.yaml").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / "report").write_text(f"{one.resume} {one.exist_ok}")
        return ""

    assert run_on_ray([trial(tmp_path, "a"), trial(tmp_path, "b")], killed_once, Room()) == ["", ""]
    assert (tmp_path / "a" / "report").read_text() == "True True"
    assert (tmp_path / "b" / "report").read_text() == "False False"


def test_a_trial_that_kills_every_worker_is_given_up_and_the_others_are_not(ray, tmp_path):
    def deadly(one):
        if one.name == "a":
            with Path(one.project, "lives").open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return "" if one.name == "b" else 1 / 0

    outcomes = run_on_ray([trial(tmp_path, name) for name in "abc"], deadly, Room())
    assert outcomes[0].startswith("its worker died 3 times, the last time so: ")
    assert outcomes[1:] == ["", "ZeroDivisionError: division by zero."]
    assert (tmp_path / "lives").read_text() == "xxx"


def test_files_are_named_so_that_a_worker_finds_them(ray, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("best.pt").touch()
    Path("layers.py").touch()
    Path("runs").mkdir()
    asked = trial("runs", "a", imports="layers.py,my.layers", trust=True)
    (words,) = run_on_ray([asked], lambda one: repr((one.model, one.data, one.project, one.imports)), Room())
    expected = (str(tmp_path / "best.pt"), "d.yaml", str(tmp_path / "runs"))
    assert words == repr((*expected, (str(tmp_path / "layers.py"), "my.layers")))


def test_a_node_without_the_shared_folder_or_with_another_release_says_so(tmp_path):
    missing = engines._on_node(lambda _: "ran", trial(tmp_path / "away", "a"), yolo_prune.__version__)
    assert f"has no folder '{tmp_path}/away'. Give project= a folder that every node" in missing
    other = engines._on_node(lambda _: "ran", trial(tmp_path, "a"), "0.0.1")
    assert other.endswith(f"has yolo-prune {yolo_prune.__version__}, and the sweep was started with 0.0.1.")
    assert engines._on_node(lambda _: "ran", trial(tmp_path, "a"), yolo_prune.__version__) == "ran"


def test_a_trial_that_no_node_has_room_for_is_refused_instead_of_waited_for(ray, tmp_path):
    with pytest.raises(
        ConfigError, match=r"^a trial needs 5 CPUs and 0 GPUs, and no node .* \(2 CPUs, 0 GPUs\)"
    ):
        run_on_ray([trial(tmp_path, "a")], lambda _: "", Room(cpus=5))
    with pytest.raises(ConfigError, match=r"^a trial needs 1 CPUs and 1 GPUs"):
        run_on_ray([trial(tmp_path, "a", device="cuda")], lambda _: "", Room())


def test_a_certain_gpu_cannot_be_asked_for(ray, tmp_path):
    with pytest.raises(ConfigError, match=r"^engine=ray gives each trial a GPU of its own.* device=cuda:3\."):
        run_on_ray([trial(tmp_path, "a", device="cuda:3")], lambda _: "", Room())
