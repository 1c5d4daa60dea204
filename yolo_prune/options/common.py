"""Options that several commands have: one meaning, one default, one line of help, and the title it stands under."""

from __future__ import annotations

from functools import partial
from typing import Any

from yolo_prune.criteria import CRITERIA, FOREIGN
from yolo_prune.imgsz import read_size
from yolo_prune.options.fields import SEED_MAX, option
from yolo_prune.options.places import AUTO, read_round_to
from yolo_prune.runtimes import DEFAULT_RUNTIMES, RUNTIMES

MODEL, BUDGET, WHEN, CUT, SPARSE = "Model and data", "Budget", "When to cut", "What to cut", "Sparse epochs"
RECOVERY, TRAINING, MEASURING, CHOICE = "Recovery without training", "Retraining", "Measuring", "Choice"
FILE, COMPUTING, FOLDER, OUTPUT = "File", "Computing", "Run folder", "Output"
LIMITS = "What it must reach"
TITLES = (
    *(MODEL, LIMITS, BUDGET, WHEN, CUT, SPARSE, RECOVERY, TRAINING),
    *(MEASURING, CHOICE, FILE, COMPUTING, FOLDER, OUTPUT),
)
"""What the options of a command stand under in its help, in this order."""

_MODEL = "checkpoint (*.pt), official model name, architecture (*.yaml), or LIBRARY:NAME with weights="
_WEIGHTS = "state dict (*.pth) of an architecture that model= names, as LIBRARY:NAME"
_DATA = "data set in the host's format: a data.yaml, a folder of classes, or a name it knows"
_IMGSZ = "side of the square input in pixels, or height,width; the checkpoint's own when not given"
_TRUST = "load classes that are not stock: they can run any code, so only for files of your own"
_IMPORTS = "with trust=true: Python files or modules with layers of your own, such as layers.py"
_KEEP_MACS = "one of these: fraction of the model's MACs that stays; of a pruned model, of what is left"
_GMACS = "one of these: MACs that stay, in 1e9 at imgsz"
_KEEP_PARAMS = "one of these: fraction of the model's parameters that stays"
_SPEEDUP = "one of these: how many times as fast it must be on runtime=, resizing to suppression"
_LATENCY_MS = "one of these: milliseconds that an image may take on runtime=, resizing to suppression"
_FPS = "one of these: images per second on runtime=, resizing to suppression"
_RUNTIME = "of a target or round_to=auto; onnxruntime when not given and installed, else torch"
_TARGET_DEVICE = "of a target or round_to=auto: cpu, or cuda:0 where the runtime has it"
_TABLE = "of a target or round_to=auto: what 'yolo-prune latency' measured on a board"
_CRITERION = "what a channel is worth; auto: bn_scale after sparse training, else reconstruction"
_STEPS = "steps of measuring, choosing and folding on the way to the budget"
_ROUND_TO = "widths become multiples of this many channels; auto measures what runtime= likes"
_MIN_WIDTH = "no layer gets narrower than this many channels"
_MIN_KEEP = "share of its width that every layer keeps, 0 for none; chosen when not given"
_KEEP_LAYERS = "modules that keep their channels, such as model.0,model.22"
_FOLD = "fold what removed channels contributed into the kept ones"
_IMAGES = "training images that folding and scoring look at"
_IMITATION = "most time for the cut model to imitate its parent on training images, no labels; 0: none"
_EPOCHS = "epochs of retraining after the cut; 0 for none"
_DISTILL = "learn from the parent while retraining"
_LR0 = "first learning rate of retraining; chosen when not given"
_OPTIMIZER = "the host's optimizer for retraining; auto is the package's gentle recipe"
_SPLIT = "split of the data set to evaluate on"
_DEVICE = "cpu, cuda:0 or the number of a GPU; chosen when not given"
_THREADS = "CPU threads while measuring; all when not given"
_BATCH = "images per batch of evaluation and training"

_SHARED = {
    "model": partial(option, help=_MODEL, group=MODEL),
    "weights": partial(option, help=_WEIGHTS, default=None, group=MODEL),
    "data": partial(option, help=_DATA, group=MODEL),
    "imgsz": partial(option, help=_IMGSZ, default=None, group=MODEL, low=32, multiple=32, read=read_size),
    "trust": partial(option, help=_TRUST, default=False, group=MODEL),
    "imports": partial(option, help=_IMPORTS, default=(), group=MODEL),
    "keep_macs": partial(option, help=_KEEP_MACS, default=None, group=BUDGET, low=0, high=1, inside=True),
    "gmacs": partial(option, help=_GMACS, default=None, group=BUDGET, low=1e-6),
    "keep_params": partial(option, help=_KEEP_PARAMS, default=None, group=BUDGET, low=0, high=1, inside=True),
    "target_speedup": partial(option, help=_SPEEDUP, default=None, group=BUDGET, low=1),
    "target_latency_ms": partial(option, help=_LATENCY_MS, default=None, group=BUDGET, low=1e-3),
    "target_fps": partial(option, help=_FPS, default=None, group=BUDGET, low=1e-3),
    "runtime": partial(option, help=_RUNTIME, default=None, group=MEASURING, choices=tuple(RUNTIMES)),
    "target_device": partial(option, help=_TARGET_DEVICE, default="cpu", group=MEASURING),
    "latency": partial(option, help=_TABLE, default=None, group=MEASURING),
    "criterion": partial(
        option, help=_CRITERION, default="auto", group=CUT, choices=("auto", *CRITERIA), prefix=FOREIGN
    ),
    "steps": partial(option, help=_STEPS, default=12, group=CUT, low=1, high=100),
    "round_to": partial(
        option,
        help=_ROUND_TO,
        default=8,
        group=CUT,
        low=1,
        high=64,
        words=(AUTO,),
        read=read_round_to,
    ),
    "min_width": partial(option, help=_MIN_WIDTH, default=8, group=CUT, low=1),
    "min_keep": partial(option, help=_MIN_KEEP, default=None, group=CUT, low=0, high=1),
    "keep_layers": partial(option, help=_KEEP_LAYERS, default=(), group=CUT),
    "fold": partial(option, help=_FOLD, default=True, group=RECOVERY),
    "calibration_images": partial(option, help=_IMAGES, default=96, group=RECOVERY, low=1),
    "recover_seconds": partial(option, help=_IMITATION, default=300.0, group=RECOVERY, low=0),
    "epochs": partial(option, help=_EPOCHS, default=0, group=TRAINING, low=0),
    "distill": partial(option, help=_DISTILL, default=True, group=TRAINING),
    "lr0": partial(option, help=_LR0, default=None, group=TRAINING, low=0),
    "optimizer": partial(option, help=_OPTIMIZER, default="auto", group=TRAINING),
    "split": partial(option, help=_SPLIT, default="val", group=MEASURING, choices=("val", "test", "train")),
    "runtimes": partial(
        option,
        help="runtimes to measure on",
        default=DEFAULT_RUNTIMES,
        group=MEASURING,
        choices=tuple(RUNTIMES),
    ),
    "device": partial(option, help=_DEVICE, default=None, group=COMPUTING),
    "threads": partial(option, help=_THREADS, default=None, group=COMPUTING, low=1, high=1024),
    "batch": partial(option, help=_BATCH, default=16, group=COMPUTING, low=1),
    "workers": partial(option, help="processes that load images", default=2, group=COMPUTING, low=0),
    "seed": partial(
        option, help="seed of everything random", default=0, group=COMPUTING, low=0, high=SEED_MAX
    ),
    "project": partial(option, help="folder of the run folders", group=FOLDER),
    "name": partial(
        option, help="name of the run folder; numbered when not given", default=None, group=FOLDER
    ),
    "exist_ok": partial(option, help="write into a run folder that exists", default=False, group=FOLDER),
    "json": partial(option, help="file for the result as JSON", default=None, group=OUTPUT),
    "verbose": partial(option, help="print progress", default=True, group=OUTPUT),
    "debug": partial(option, help="show the traceback of an error", default=False, group=OUTPUT),
}


def shared(name: str, **changes: Any) -> Any:
    """Declare an option that several commands have.

    Args:
        name: A key of the table above.
        **changes: Arguments of :func:`yolo_prune.options.fields.option` that are others in this command.
    """
    return _SHARED[name](**changes)
