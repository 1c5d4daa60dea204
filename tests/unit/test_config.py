"""Options: words and YAML in, typed and checked configurations out, with sentences that help."""

from pathlib import Path

import pytest

from yolo_prune.errors import ConfigError
from yolo_prune.options import (
    BenchConfig,
    DemoConfig,
    EvalConfig,
    PruneConfig,
    SweepConfig,
    TrainConfig,
    to_yaml,
)
from yolo_prune.options.fields import config_from, option_fields, parse_overrides
from yolo_prune.runs.configure import make_config
from yolo_prune.runtimes import RUNTIMES

NEEDED = ["model=best.pt", "data=data.yaml"]


def prune_config(*words):
    return make_config(PruneConfig, [*NEEDED, *words])


def retrain_config(*words):
    given = {word.partition("=")[0] for word in words}
    return prune_config("keep_macs=0.5", *(["epochs=9"] if "epochs" not in given else []), *words)


def sentence(kind, words):
    with pytest.raises(ConfigError) as caught:
        make_config(kind, words)
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a=1"], {"a": "1"}),
        (["--a", "1"], {"a": "1"}),
        (["--a=1"], {"a": "1"}),
        (["--a"], {"a": "true"}),
        (["--a", "--b", "2"], {"a": "true", "b": "2"}),
        (["--a", "b=2"], {"a": "true", "b": "2"}),
        (["--keep-macs", "0.5"], {"keep_macs": "0.5"}),
        (["keep-macs=0.5"], {"keep_macs": "0.5"}),
        (["a=x=y"], {"a": "x=y"}),
        (["a="], {"a": ""}),
        (["--degrees", "-5"], {"degrees": "-5"}),
        ([], {}),
    ],
)
def test_every_spelling_of_a_word_means_the_same(words, expected):
    assert parse_overrides(words) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["best.pt"], "'best.pt' is not key=value. Options look like model=best.pt or --model best.pt."),
        (["a=1", "--a", "2"], "key 'a' is given twice: '1' and '2'."),
        (["=1"], "'=1' has no usable key. Options look like model=best.pt."),
        (["--"], "'--' has no usable key. Options look like model=best.pt."),
    ],
)
def test_a_word_that_is_no_option_is_named(words, expected):
    with pytest.raises(ConfigError) as caught:
        parse_overrides(words)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("epochs=3", "epochs", 3),
        ("epochs=3.0", "epochs", 3),
        ("lr0=1e-3", "lr0", 0.001),
        ("lr0=none", "lr0", None),
        ("device=0", "device", "0"),
        ("name=null", "name", None),
        ("fold=False", "fold", False),
        ("fold=0", "fold", False),
        ("trust=yes", "trust", True),
        ("--exist_ok", "exist_ok", True),
        ("recalibrate_bn=auto", "recalibrate_bn", "auto"),
        ("recalibrate_bn=true", "recalibrate_bn", True),
        ("keep_layers=model.0,model.1", "keep_layers", ("model.0", "model.1")),
        ("keep_layers=[model.0, model.1]", "keep_layers", ("model.0", "model.1")),
        ("keep_layers=", "keep_layers", ()),
        ("runtimes=torch", "runtimes", ("torch",)),
        ("imgsz=416", "imgsz", 416),
    ],
)
def test_texts_become_the_type_of_their_field(word, key, value):
    found = getattr(retrain_config(word), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("epochs=three", "epochs must be a whole number, got 'three'."),
        ("epochs=2.5", "epochs must be a whole number, got '2.5'."),
        ("epochs=true", "epochs must be a whole number, got 'true'."),
        ("epochs=", "epochs must be a whole number, got ''."),
        ("epochs=-1", "epochs must be at least 0, got -1."),
        ("lr0=nan", "lr0 must be a number, got 'nan'."),
        ("fold=maybe", "fold must be true or false, got 'maybe'."),
        ("batch=0", "batch must be at least 1, got 0."),
        ("round_to=0", "round_to must be between 1 and 64, got 0."),
        ("min_keep=1.5", "min_keep must be between 0 and 1, got 1.5."),
        ("min_keep=-0.1", "min_keep must be between 0 and 1, got -0.1."),
        ("steps=101", "steps must be between 1 and 100, got 101."),
        ("imgsz=330", "imgsz must be a multiple of 32, got 330: try 352."),
        ("imgsz=0", "imgsz must be at least 32, got 0."),
        ("split=vla", "split must be one of 'val', 'test', 'train', got 'vla'. Did you mean 'val'?"),
        (
            "runtimes=torch,onx",
            f"runtimes must be one of {', '.join(map(repr, RUNTIMES))}, got 'onx'.",
        ),
        ("recalibrate_bn=7", "recalibrate_bn must be one of 'auto', true, false, got '7'."),
        ("keep_masc=0.5", "unknown key 'keep_masc'. Did you mean 'keep_macs'?"),
        ("mosaik=0.5", "unknown key 'mosaik'. Did you mean 'mosaic'?"),
        ("zzz=0.5", "unknown key 'zzz'."),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(word, expected):
    assert sentence(PruneConfig, [*NEEDED, "keep_macs=0.5", word]) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("keep_macs=50%", "keep_macs must be a number, got '50%'. Did you mean keep_macs=0.5?"),
        ("keep_macs=0.5 min_keep=101", "min_keep must be between 0 and 1, got 101."),
        ("keep_macs=0.5 min_keep=2", "min_keep must be between 0 and 1, got 2. Did you mean min_keep=0.02?"),
        ("keep_macs=0.5 min_width=8%", "min_width must be a whole number, got '8%'."),
    ],
)
def test_per_cent_are_answered_with_the_share_they_are(words, expected):
    assert sentence(PruneConfig, [*NEEDED, *words.split()]) == expected


@pytest.mark.parametrize("value", ["0", "1", "1.5", "-0.5", "50"])
@pytest.mark.parametrize("key", ["keep_macs", "keep_params"])
def test_a_fraction_lies_inside_zero_and_one(key, value):
    meant = f" Did you mean {key}=0.5?" if value == "50" else ""
    expected = f"{key} must be larger than 0 and smaller than 1, got {value}.{meant}"
    assert sentence(PruneConfig, [*NEEDED, f"{key}={value}"]) == expected


@pytest.mark.parametrize(
    ("words", "got"),
    [
        ([], "got none"),
        (["keep_macs=0.5", "gmacs=1"], "got keep_macs and gmacs"),
        (["keep_macs=0.5", "keep_params=0.5"], "got keep_macs and keep_params"),
        (["keep_macs=0.5", "target_fps=30"], "got keep_macs and target_fps"),
        (["target_speedup=2", "target_latency_ms=9"], "got target_speedup and target_latency_ms"),
    ],
)
def test_exactly_one_budget_is_wanted(words, got):
    kinds = "keep_macs, gmacs, keep_params, target_speedup, target_latency_ms, target_fps"
    expected = f"give exactly one budget of {kinds}; {got}."
    assert sentence(PruneConfig, [*NEEDED, *words]) == expected


@pytest.mark.parametrize("word", ["runtime=openvino", "target_device=cuda:0"])
def test_where_a_target_is_met_means_nothing_without_one(word):
    assert sentence(PruneConfig, [*NEEDED, "keep_macs=0.5", word]) == (
        f"{word} is where a target is met, and keep_macs is none: give one of target_speedup, target_latency_ms, "
        "target_fps, or round_to=auto, or leave it out. runtimes= are those that are measured."
    )
    assert make_config(PruneConfig, [*NEEDED, "target_fps=30", word]).target_fps == 30
    assert make_config(PruneConfig, [*NEEDED, "keep_macs=0.5", "round_to=auto", word]).round_to == "auto"


def test_a_sweep_has_shares_of_its_own_where_nothing_is_asked_for_and_targets_beside_or_instead():
    words = ["model=a.pt", "data=d.yaml"]
    shares = [("keep_macs", share) for share in (0.8, 0.65, 0.5, 0.35)]
    assert make_config(SweepConfig, words).budgets == shares
    assert make_config(SweepConfig, [*words, "target_speedup=1.5,2"]).budgets == [
        ("target_speedup", 1.5),
        ("target_speedup", 2.0),
    ]
    both = make_config(SweepConfig, [*words, "keep_macs=0.5", "target_fps=30"])
    assert both.budgets == [("keep_macs", 0.5), ("target_fps", 30.0)]


def test_a_sweep_without_a_target_refuses_where_it_is_met():
    assert sentence(SweepConfig, ["model=a.pt", "data=d.yaml", "target_device=cuda:0"]) == (
        "target_device=cuda:0 is where targets are met, and there is none: give one of target_speedup, "
        "target_latency_ms, target_fps, or leave it out."
    )


@pytest.mark.parametrize("key", ["target_speedup", "target_latency_ms", "target_fps"])
def test_a_training_takes_a_target_and_where_it_is_met(key):
    words = [f"{key}=2", "runtime=ncnn", "target_threads=4"]
    config = make_config(TrainConfig, ["model=a.pt", "data=d.yaml", *words])
    assert (config.budget, config.runtime, config.target_threads, config.threads) == (
        (key, 2.0),
        "ncnn",
        4,
        None,
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["keep_macs=0.5", "target_threads=2"],
            "target_threads are those of the runtime that a target, or round_to=auto, is measured on, and none is: "
            "leave it out.",
        ),
        (
            ["runtime=ncnn"],
            "runtime=ncnn is where a target is met, and there is none: give one of target_speedup, "
            "target_latency_ms, target_fps, or round_to=auto, or leave it out.",
        ),
        (
            ["target_fps=9", "latency=t.json", "runtime=ncnn"],
            "runtime=ncnn and latency=t.json: the table says what it was measured on. Leave the others out.",
        ),
    ],
)
def test_a_training_refuses_a_place_that_nothing_is_asked_of(words, expected):
    assert sentence(TrainConfig, ["model=a.pt", "data=d.yaml", *words]) == expected


@pytest.mark.parametrize("value", ["often", "7.5", "true"])
def test_widths_are_rounded_to_a_number_or_to_what_the_runtime_likes(value):
    expected = f"round_to must be a whole number or auto, got '{value}'."
    assert sentence(PruneConfig, [*NEEDED, "keep_macs=0.5", f"round_to={value}"]) == expected


def test_a_missing_key_says_what_it_is():
    assert sentence(PruneConfig, ["model=a.pt", "keep_macs=0.5"]) == (
        "'data' is missing: data set in the host's format: a data.yaml, a folder of classes, or a name it knows. "
        "Give data=..."
    )


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_the_defaults(tmp_path: Path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "keep_macs: 0.7\nepochs: 3\nround_to: 4\nmosaic: 0.5\nkeep_layers: [model.0]\n", "utf-8"
    )
    config = prune_config(f"cfg={recipe}", "epochs=9")
    assert (config.keep_macs, config.epochs, config.round_to, config.min_width) == (0.7, 9, 4, 8)
    assert config.keep_layers == ("model.0",)
    assert config.train_args == {"mosaic": 0.5}


def test_a_budget_on_the_command_line_replaces_the_one_of_the_recipe(tmp_path: Path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("keep_macs: 0.7\n", "utf-8")
    config = prune_config(f"cfg={recipe}", "gmacs=1.5")
    assert (config.keep_macs, config.gmacs) == (None, 1.5)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("l1_strenght: 1\n", "unknown key 'l1_strenght' in {file}."),
        ("epoch: 1\n", "unknown key 'epoch' in {file}. Did you mean 'epochs'?"),
        ("cfg: other.yaml\n", "unknown key 'cfg' in {file}."),
        ("- 1\n", "recipe '{file}' must map keys to values, such as 'keep_macs: 0.5'."),
        ("text\n", "recipe '{file}' must map keys to values, such as 'keep_macs: 0.5'."),
        ("epochs: 1\nbatch: [1\n", "recipe '{file}' is not valid YAML (line 3)."),
        ("a: !!python/object/apply:os.getcwd []\n", "recipe '{file}' is not valid YAML (line 1)."),
        (None, "recipe '{file}' cannot be read: No such file or directory."),
    ],
)
def test_a_bad_recipe_is_named_with_the_place(tmp_path: Path, content, expected):
    recipe = tmp_path / "x.yaml"
    if content is not None:
        recipe.write_text(content, "utf-8")
    found = sentence(PruneConfig, [*NEEDED, "keep_macs=0.5", f"cfg={recipe}"])
    assert found == expected.format(file=recipe)


def test_an_empty_recipe_changes_nothing(tmp_path: Path):
    recipe = tmp_path / "x.yaml"
    recipe.write_text("# nothing\n", "utf-8")
    assert prune_config("keep_macs=0.5", f"cfg={recipe}") == prune_config("keep_macs=0.5")


def test_args_yaml_gives_the_same_configuration_back(tmp_path: Path):
    config = prune_config(
        "keep_params=0.25", "keep_layers=model.0", "epochs=9", "mosaic=0", "lr0=1e-4", "recalibrate_bn=false"
    )
    file = tmp_path / "args.yaml"
    file.write_text(to_yaml(config), "utf-8")
    assert make_config(PruneConfig, [f"cfg={file}"]) == config


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("mosaic=0", 0),
        ("hsv_h=1e-3", 0.001),
        ("cos_lr=true", True),
        ("cache=ram", "ram"),
        ("classes=[0, 1]", [0, 1]),
    ],
)
def test_training_arguments_of_the_host_ride_along(word, value):
    key = word.partition("=")[0]
    assert make_config(TrainConfig, [*NEEDED, word]).train_args == {key: value}


def test_commands_that_do_not_train_refuse_training_arguments():
    assert sentence(EvalConfig, [*NEEDED, "mosaic=0"]) == "unknown key 'mosaic'."


def test_python_values_are_accepted_as_they_are(tmp_path: Path):
    config = PruneConfig(
        model=tmp_path / "a.pt", data="d.yaml", keep_macs=0.5, device=0, keep_layers=["model.0"]
    )
    assert (config.model, config.device, config.keep_layers) == (str(tmp_path / "a.pt"), "0", ("model.0",))


def test_several_models_are_a_list_with_commas():
    assert make_config(BenchConfig, ["model=a.pt, b.pt"]).model == ("a.pt", "b.pt")
    assert sentence(BenchConfig, ["model="]) == "'model' names no checkpoint: give model=parent.pt,pruned.pt."


@pytest.mark.parametrize("kind", [PruneConfig, TrainConfig, EvalConfig, BenchConfig, DemoConfig])
def test_every_option_is_documented_in_one_line(kind):
    for name, field in option_fields(kind).items():
        text = field.metadata["help"]
        assert 10 < len(text) < 100, name
        assert "\n" not in text
        assert not text.endswith("."), name


def test_keys_of_the_host_do_not_hide_our_own():
    from yolo_prune.adapters.ultralytics.keys import TRAIN_KEYS

    assert not set(TRAIN_KEYS) & set(option_fields(PruneConfig))
    assert len(set(TRAIN_KEYS)) == len(TRAIN_KEYS)


def test_a_configuration_without_a_place_for_them_takes_no_other_keys():
    with pytest.raises(ConfigError, match="unknown key 'epochz'"):
        config_from(EvalConfig, {"epochz": 1})


@pytest.mark.parametrize("text", ["2024_01", "012", "on", "1e3", "0x10", "12:30:00", "2024-01-01", "~x"])
@pytest.mark.parametrize("kind", [PruneConfig, TrainConfig])
def test_a_name_stays_the_text_it_is_on_the_command_line_and_in_a_recipe(tmp_path, kind, text):
    """YAML 1.1 and Python read numbers, truths and dates into these."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"name: {text}\n", "utf-8")
    budget = ["keep_macs=0.5"]
    for words in ([f"name={text}"], [f"cfg={recipe}"]):
        config = make_config(kind, [*NEEDED, *budget, *words])
        assert (config.train_args["name"] if kind is TrainConfig else config.name) == text


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("patience=012", 12),
        ("cos_lr=on", True),
        ("pretrained=off", False),
        ("pretrained=2024_01", "2024_01"),
        ("device=0,1", [0, 1]),
        ("imgsz=320,640", [320, 640]),
        ("scale=(0.5, 1.5)", [0.5, 1.5]),
        ("freeze=10", 10),
        ("freeze=23.cv2", ["23.cv2"]),  # the host passes over a bare text in silence
        ("freeze=0,23.cv2", [0, "23.cv2"]),
        ("classes=0,2", [0, 2]),
        ("time=none", None),
        ("batch=-1", -1),
        ('project="null"', "null"),
    ],
)
def test_a_value_of_the_host_is_what_its_key_takes(tmp_path, word, value):
    key, _, text = word.partition("=")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"{key}: {text}\n", "utf-8")
    for words in ([word], [f"cfg={recipe}"]):
        found = make_config(TrainConfig, [*NEEDED, *words]).train_args[key]
        assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ('"a,b.pt",c.pt', ("a,b.pt", "c.pt")),
        ("'a,b.pt', c.pt", ("a,b.pt", "c.pt")),
        ('["a,b.pt", c.pt]', ("a,b.pt", "c.pt")),
        ("model.[0-4],b.pt", ("model.[0-4]", "b.pt")),
    ],
)
def test_quotes_keep_a_comma_in_an_item_of_a_list(tmp_path, text, models):
    assert make_config(BenchConfig, [f"model={text}"]).model == models
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model:\n" + "".join(f"  - '{model}'\n" for model in models), "utf-8")
    assert make_config(BenchConfig, [f"cfg={recipe}"]).model == models


def test_a_file_name_with_a_comma_is_one_model():
    assert make_config(EvalConfig, ["model=a,b.pt", "data=c,d.yaml"]).model == "a,b.pt"


def test_quotes_in_a_recipe_mean_the_word_itself(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: 'null'\ndevice: null\n", "utf-8")
    config = prune_config("keep_macs=0.5", f"cfg={recipe}")
    assert (config.name, config.device) == ("null", None)


@pytest.mark.parametrize("kind", [PruneConfig, SweepConfig])
def test_options_of_a_retraining_that_there_is_none_of_are_refused(kind):
    budget = ["keep_macs=0.5"]
    assert sentence(kind, [*NEEDED, *budget, "mosaic=0", "plots=false"]) == (
        "mosaic, plots: for retraining, and epochs=0 asks for none. Give epochs=, or leave it out."
    )
    assert make_config(kind, [*NEEDED, *budget, "mosaic=0", "epochs=1"]).train_args == {"mosaic": 0}


@pytest.mark.parametrize("kind", [PruneConfig, SweepConfig, DemoConfig])
def test_a_seed_that_numpy_would_not_take_is_refused_at_once(kind):
    needed = [] if kind is DemoConfig else [*NEEDED, "keep_macs=0.5"]
    assert sentence(kind, [*needed, "seed=4294967296"]) == (
        "seed must be between 0 and 4294967295, got 4294967296."
    )
    assert make_config(kind, [*needed, "seed=4294967295"]).seed == 2**32 - 1
