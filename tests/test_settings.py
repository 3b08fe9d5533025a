"""What params.yaml may contain: every mistake gets one sentence with its place and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from _commands import NET, STUDY, write_study
from pydantic import BaseModel

from kdsteps.errors import KdstepsError
from kdsteps.jobs import graph
from kdsteps.study import registry
from kdsteps.study.entries import DatasetEntry, MethodEntry, ModelEntry, Pair, Params
from kdsteps.study.loading import load_study, parse_study
from kdsteps.study.messages import shown
from kdsteps.study.section import Section
from kdsteps.study.training_settings import Distil, Training

NAN = float("nan")
RUN = {"pair": "pair", "method": "kd", "seed": "0"}
REQUIRED = ("datasets", "models", "pairs", "methods", "seeds")


def said(**sections: Any) -> str:
    """The message about the small study with some sections replaced."""
    with pytest.raises(KdstepsError) as raised:
        parse_study(STUDY | sections)
    return str(raised.value)


def kd(**options: Any) -> dict[str, Any]:
    return {"methods": {"kd": options}}


def big(**options: Any) -> dict[str, Any]:
    return {"models": {"big": NET | options, "small": NET}}


def pair(**values: Any) -> dict[str, Any]:
    return {"pairs": {"pair": STUDY["pairs"]["pair"] | values}}


def digits(**options: Any) -> dict[str, Any]:
    return {"datasets": {"digits": options}}


@pytest.mark.parametrize(
    ("sections", "place", "meant"),
    [
        ({"sedes": [1]}, "sedes", "seeds"),
        ({"distil": {"epoch": 3}}, "distil.epoch", "epochs"),
        (pair(techer="big"), "pairs.pair.techer", "teacher"),
        (pair(distil={"epoch": 3}), "pairs.pair.distil.epoch", "epochs"),
        (pair(build={"cut": "stages"}), "pairs.pair.build.cut", "cuts"),
        (kd(temprature=3), "methods.kd.temprature", "temperature"),
        (kd(distill={}), "methods.kd.distill", "distil"),
        (kd(distil={"epoch": 3}), "methods.kd.distil.epoch", "epochs"),
        (kd(build={"cut": 3}), "methods.kd.build.cut", "cuts"),
        (big(dept=8), "models.big.dept", "depth"),
        (big(train={"epoch": 3}), "models.big.train.epoch", "epochs"),
        (digits(kind="digits", siz=8), "datasets.digits.siz", "size"),
        ({"evaluate": {"x": 1}}, "evaluate.x", "calibration_bins"),
    ],
)
def test_an_unknown_key_is_named_with_the_one_that_was_meant(sections, place, meant):
    found = said(**sections)
    assert found.startswith(f"params.yaml: {place} is an unknown key; ")
    assert meant in found


@pytest.mark.parametrize(
    ("sections", "place", "value", "right"),
    [
        ({"distil": {"epochs": "5"}}, "distil.epochs", "'5'", "a whole number"),
        ({"distil": {"epochs": 2.0}}, "distil.epochs", "2.0", "a whole number"),
        ({"distil": {"epochs": True}}, "distil.epochs", "true", "a whole number"),
        ({"distil": {"epochs": None}}, "distil.epochs", "empty", "a whole number"),
        ({"distil": {"epochs": -1}}, "distil.epochs", "-1", "above 0"),
        ({"distil": {"flip": "yes"}}, "distil.flip", "'yes'", "true or false"),
        ({"distil": {"flip": 1}}, "distil.flip", "1", "true or false"),
        ({"distil": {"learning_rate": float("inf")}}, "distil.learning_rate", "inf", "finite"),
        (kd(temperature=0), "methods.kd.temperature", "0", "above 0"),
        (kd(temperature=NAN), "methods.kd.temperature", "nan", "finite"),
        ({"train": {"milestones": [1, -2]}}, "train.milestones[1]", "-2", "above 0"),
        ({"train": {"momentum": 1}}, "train.momentum", "1", "below 1"),
        ({"train": {"randaugment": 31}}, "train.randaugment", "31", "at most 30"),
        ({"report": {"confidence": 1}}, "report.confidence", "1", "below 1"),
        ({"methods": {"loca": {"alpha": 0}}}, "methods.loca.alpha", "0", "above 0"),
        ({"report": {"title": 3}}, "report.title", "3", "text"),
        ({"report": {"title": "x" * 201}}, "report.title", shown("x" * 201), "at most 200"),
        ({"distil": {"batch_size": 10**7}}, "distil.batch_size", "10000000", "at most 1000000"),
        ({"distil": {"batch_size": 1e20}}, "distil.batch_size", "1e+20", "a whole number"),
        ({"distil": {"crop_padding": 10**20}}, "distil.crop_padding", str(10**20), "at most 1000"),
        (
            {"train": {"checkpoint_minutes": 1e9}},
            "train.checkpoint_minutes",
            "1000000000.0",
            "most",
        ),
        ({"cache": {"budget_gib": 1e300}}, "cache.budget_gib", "1e+300", "at most 1000000"),
        ({"cache": {"images": 10**40}}, "cache.images", str(10**40), "at most 1000000000"),
        ({"evaluate": {"latency_runs": 10**9}}, "evaluate.latency_runs", "1000000000", "at most"),
        (
            {"evaluate": {"calibration_bins": 10**30}},
            "evaluate.calibration_bins",
            str(10**30),
            "at",
        ),
        ({"train": {"schedule": "cosin"}}, "train.schedule", "'cosin'", "'cosine'"),
        (digits(kind="digits", size=7), "datasets.digits.size", "7", "8, 16 or 32"),
        (big(depth="8"), "models.big.depth", "'8'", "a whole number"),
        (big(widths=[4, 4]), "models.big.widths", "[4, 4]", "4 items"),
        (big(widths=[4] * 5), "models.big.widths", "[4, 4, 4, 4, 4]", "at most 4 items"),
        (big(checkpoint=3), "models.big.checkpoint", "3", "text"),
        (big(family=["vgg"]), "models.big.family", '["vgg"]', "text"),
        (big(train={"epochs": -1}), "models.big.train.epochs", "-1", "at least 0"),
        (pair(distil={"epochs": "3"}), "pairs.pair.distil.epochs", "'3'", "a whole number"),
        # all choices of a setting are named, and the one that a list was meant for alone
        ({"build": {"cuts": "foo"}}, "build.cuts", "'foo'", "'stages', 'quality' or a list"),
        ({"build": {"cuts": [["a"]]}}, "build.cuts[0]", '["a"]', "2 items"),
        ({"build": {"cuts": [["a", 1]]}}, "build.cuts[0][1]", "1", "text"),
        (kd(build={"cuts": 3}), "methods.kd.build.cuts", "3", "'stages', 'quality' or a list"),
        ({"build": {"num_stones": 0}}, "build.num_stones", "0", "above 0"),
        (
            {"methods": {"block_kd": {"stone_weights": "x"}}},
            "methods.block_kd.stone_weights",
            "'x'",
            "'halving', 'equal' or a list",
        ),
        # lists for mappings, and nothing where something is needed
        ({"distil": [1]}, "distil", "[1]", "`key: value` entries"),
        ({"methods": {"kd": 3}}, "methods.kd", "3", "`key: value` entries"),
        (pair(distil=[1]), "pairs.pair.distil", "[1]", "`key: value` entries"),
        (kd(distil=[1]), "methods.kd.distil", "[1]", "`key: value` entries"),
        ({"models": []}, "models", "[]", "at least one entry `name: {family: ...}`"),
        ({"models": None}, "models", "empty", "at least one entry `name: {family: ...}`"),
        ({"pairs": {}}, "pairs", "{}", "`name: {dataset: ..., teacher: ..., student: ...}`"),
        ({"seeds": 3}, "seeds", "3", "a list"),
        ({"seeds": []}, "seeds", "[]", "such as [0, 1, 2]"),
        ({"seeds": [2**32]}, "seeds[0]", "4294967296", "at most 4294967295"),
    ],
)
def test_a_wrong_value_is_shown_with_its_place_and_what_would_be_right(
    sections, place, value, right
):
    found = said(**sections)
    start = f"params.yaml: {place} is {value}; it should "
    assert found.startswith(start)
    assert right in found.removeprefix(start)
    assert "\n" not in found


@pytest.mark.parametrize(
    ("sections", "place", "remedy"),
    [
        ({"pairs": {"pair": None}}, "pairs.pair.dataset is missing", "(and 1 more)"),
        ({"pairs": {"pair": {}}}, "pairs.pair.dataset is missing", "a name under `datasets`"),
        (digits(size=8), "datasets.digits.kind is missing", "such as digits"),
        ({"models": {"my net": NET}}, "models has an entry 'my net'", "letters, digits, - and _"),
        ({"pairs": {"a/b": {}}}, "pairs has an entry 'a/b'", "letters, digits, - and _"),
        ({"pairs": {"-x": {}}}, "pairs has an entry '-x'", "a letter or digit first"),
        ({"datasets": {"x" * 81: {}}}, "datasets has an entry 'xx", "up to 80 letters"),
        ({"pairs": {"[key]": {}}}, "pairs has an entry '[key]'", "letters, digits, - and _"),
        ({"[key]": "[key]"}, "[key] is an unknown key", "there are datasets, "),
        ({"train": {"[key]": "train"}}, "train.[key] is an unknown key", "there are "),
        (kd(**{"[key]": 1}), "methods.kd.[key] is an unknown key", "there are "),
        (pair(student="smal"), "pairs.pair.student is 'smal'", "did you mean 'small'?"),
        (pair(dataset="cifar"), "pairs.pair.dataset is 'cifar'", "there is only digits"),
        (
            {
                "models": {"big": NET, "small": NET | {"normalize": "none"}},
                "methods": {"simkd": {}},
            },
            "pairs.pair: simkd deploys blocks of student and teacher, so models.small cannot",
            "`normalize: dataset`",
        ),
        (
            big(classes=["a", "b"]) | {"methods": {"simkd": {}}},
            "pairs.pair: simkd deploys blocks of student and teacher, so models.big cannot have",
            "leave them out",
        ),
        (pair(published="resnet32x4"), "pairs.pair.published is 'resnet32x4'", "did you mean"),
        ({"methods": {"kdd": {}}}, "methods.kdd: there is no method 'kdd'", "'kd'?"),
        ({"methods": {"mine": {"method": "kdd"}}}, "methods.mine.method: there is no", "'kd'?"),
        (big(family="cifar_resnt"), "models.big.family: there is no model family", "'cifar_resnet"),
        (big(train={"epochs": 0}), "pairs.pair.teacher is 'big'", "set a checkpoint"),
        (big(normalize="pretrained"), "models.big.normalize is 'pretrained'", "or leave it out"),
        (
            big(normalize={"mean": [0.5], "std": [0.2, 0.2, 0.2]}),
            "models.big.normalize has 1 means and 3 stds",
            "one of each per channel",
        ),
        ({"seeds": [0, 0]}, "seeds has 0 twice", "once"),
        ({"evaluate": {"metrics": ["./a.py:b"] * 2}}, "evaluate.metrics has", "once"),
        (
            {"export": {"formats": ["timm", "onnx", "timm"]}},
            "export.formats has 'timm' twice",
            "once",
        ),
        ({"export": {"runs": ["best", "best"]}}, "export.runs has 'best' twice", "once"),
        ({"report": {"references": ["kdd"]}}, "report.references has 'kdd'", "did you mean 'kd'"),
        ({"report": {"references": ["kd", "kd"]}}, "report.references has 'kd' twice", "once"),
        ({"report": {"references": []}}, "report.references", "at least 1"),
        (
            {"probe": {"dataset": "digits", "fractions": [0.1, 0.1]}},
            "probe.fractions has 0.1 twice",
            "once",
        ),
        ({"build": {"cuts": []}}, "build.cuts is []", "at least 1 item"),
        ({"build": {"select": []}}, "build.select is []", "at least 1 item"),
        (
            kd(build={"student_layers": []}),
            "methods.kd.build.student_layers is []",
            "at least 1 item",
        ),
        ({"report": {"title": "a\x1b"}}, "report.title has the character '\\x1b'", "delete it"),
        ({"report": {"title": "a\u2028"}}, "report.title has the character '\\u2028'", "delete it"),
        (big(classes=["a", "b\u202e"]), "models.big.classes[1] has the character", "delete it"),
        ({"methods": {"ab" * 20: {"method": "kd"}}}, "methods has the name 'abab", "another name"),
        (pair(teacher="x" * 20), "pairs.pair.teacher has the name 'xxx", "another name"),
    ],
)
def test_what_is_missing_or_has_no_such_name_is_said_with_the_remedy(sections, place, remedy):
    found = said(**sections)
    assert found.startswith(f"params.yaml: {place}")
    assert remedy in found


PLACES = {
    DatasetEntry: lambda key, value: digits(**{"kind": "digits", key: value}),
    ModelEntry: lambda key, value: big(**{key: value}),
    Pair: lambda key, value: pair(**{key: value}),
    MethodEntry: lambda key, value: kd(**{key: value}),
    Params: lambda key, value: {key: value},
}
SECTIONS = [name for name, info in Params.model_fields.items() if isinstance(info.default, Section)]
STRANGE = (True, -1.5, "\u00e4", [[]], {"a": {"b": {"c": []}}}, [{"int": 1}])


@pytest.mark.parametrize("entry", PLACES)
def test_a_value_of_any_other_kind_is_one_sentence(entry):
    for key in entry.model_fields:
        for value in STRANGE:
            _is_valid_or_one_sentence(PLACES[entry](key, value))


@pytest.mark.parametrize("section", SECTIONS)
def test_a_value_of_any_other_kind_in_a_section_is_one_sentence(section):
    for key in type(Params.model_fields[section].default).model_fields:
        for value in STRANGE:
            _is_valid_or_one_sentence({section: {key: value}})


def _is_valid_or_one_sentence(sections: dict[str, Any]) -> None:
    message = ""
    try:
        parse_study(STUDY | sections)
    except KdstepsError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 1000


NESTEROV = {"nesterov": True, "momentum": 0}
STILL = {"distil": {"momentum": 0}}
LATE = {"schedule": "steps", "epochs": 10, "milestones": [5, 10]}


@pytest.mark.parametrize(
    ("sections", "place", "values"),
    [
        ({"train": NESTEROV}, "train", "momentum is 0"),
        (big(train=NESTEROV), "models.big.train", "momentum is 0"),
        ({"distil": NESTEROV}, "distil", "momentum is 0"),
        ({"distil": {"momentum": 0}} | kd(distil={"nesterov": True}), "methods.kd.distil", "is 0"),
        (
            {"distil": {"momentum": 0}} | pair(distil={"nesterov": True}),
            "pairs.pair.distil",
            "is 0",
        ),
        ({"distil": LATE}, "distil", "milestones has 10 and epochs is 10"),
        ({"train": {"epochs": 100, "milestones": [150]}}, "train", "milestones has 150"),
        ({"distil": LATE | {"milestones": [2.5]}}, "distil", "a fraction of an epoch"),
    ],
)
def test_values_that_do_not_fit_together_are_named_where_they_are_set(sections, place, values):
    found = said(**sections)
    assert found.startswith(f"params.yaml: {place}: ")
    assert values in found
    assert "should" in found or "use" in found


def test_milestones_are_fractions_of_the_run_or_epochs():
    assert Training(epochs=40).milestone_epochs() == [25.0, 30.0, 35.0]
    assert Training(epochs=240).milestone_epochs() == [150.0, 180.0, 210.0]
    assert Training(epochs=40, milestones=(0.5, 30)).milestone_epochs() == [20.0, 30.0]
    assert Training(epochs=1).problem() is None
    parse_study(STUDY | {"distil": LATE | {"schedule": "cosine"}})  # which has no milestones


@pytest.mark.parametrize(
    ("sections", "said_of"),
    [
        ({"models": {"big": NET, "small": NET | {"train": {"epochs": 2}}}}, "models.small.train"),
        (
            {"models": {"big": NET, "small": NET | {"expected_accuracy": 0.9}}},
            "models.small.expected_accuracy",
        ),
        (kd(build={"cuts": "quality"}), "methods.kd.build.cuts"),
        (
            {"methods": {"block_kd": {"build": {"num_pairs": 2}}}},
            "methods.block_kd.build.num_pairs",
        ),
        (
            {"methods": {"feature_only": {"build": {"cuts": "stages"}}}},
            "methods.feature_only.build",
        ),
        ({"build": {"select": ["stage1"], "num_pairs": 1}}, "build.num_pairs"),
        (
            {"methods": {"block_kd": {"build": {"cuts": [["stage1"] * 2], "num_stones": 3}}}},
            "methods.block_kd.build.num_stones",
        ),
        (pair(build={"cuts": [["stage1"] * 2], "num_stones": 1}), "pairs.pair.build.num_stones"),
    ],
)
def test_what_an_entry_sets_without_effect_is_refused(sections, said_of):
    found = said(**sections)
    assert found.startswith(f"params.yaml: {said_of}")
    assert "leave it out" in found


def test_a_list_in_one_place_overrides_a_number_in_another():
    listed = {"build": {"cuts": [["stage1", "stage1"]]}}
    parse_study(STUDY | {"build": {"num_stones": 2}, "methods": {"block_kd": listed}})


@pytest.mark.parametrize(
    ("options", "epochs", "most"),
    [
        ({"dkd": {"warmup": 20}}, 10, 10),
        ({"sld": {"self_after": 11}}, 10, 10),
        ({"feature_only": {"classifier_after": 10}}, 10, 9),
        ({"feature_only": {"classifier_after": 0.95}}, 10, 9),
    ],
)
def test_a_length_beyond_the_run_is_refused_before_the_first_job(options, epochs, most):
    found = said(methods=options, distil={"epochs": epochs})
    ((name, (key,)),) = options.items()
    assert found.startswith(f"params.yaml: methods.{name}.{key} is ")
    assert f"distil.epochs is {epochs}; it should be at most {most}" in found


@pytest.mark.parametrize(("begin", "refused"), [(0.5, False), (None, False), (11, True)])
def test_lengths_of_a_method_of_the_user_are_checked_likewise(
    tmp_path, monkeypatch, begin, refused
):
    (tmp_path / "mine.py").write_text(
        "from kdsteps.methods.kd import KD\n\n\nclass Mine(KD):\n    lengths = {'begin': 2}\n\n"
        "    def __init__(self, *given, begin: float | None = None, **options):\n"
        "        super().__init__(*given, **options)\n"
    )
    monkeypatch.chdir(tmp_path)
    entry = {"method": "./mine.py:Mine", "begin": begin}
    content = STUDY | {"methods": {"mine": entry}, "distil": {"epochs": 12}}
    if refused:
        with pytest.raises(KdstepsError, match=r"mine\.begin is 11 and .* is 12; .* at most 10"):
            parse_study(content)
    else:
        parse_study(content)


def test_a_missing_section_is_named():
    with pytest.raises(KdstepsError, match=r"^params.yaml: seeds is missing; .* \[0, 1, 2\]"):
        parse_study({key: value for key, value in STUDY.items() if key != "seeds"})


def test_a_misspelled_section_is_named_as_such():
    content = {"seed" if key == "seeds" else key: value for key, value in STUDY.items()}
    with pytest.raises(KdstepsError, match=r"^params.yaml: seed is an unknown key; .* 'seeds'\?"):
        parse_study(content)


def test_a_value_that_is_long_is_cut_short():
    assert shown("x" * 100) == f"'{'x' * 58}…"


# defaults and overrides


def every_setting(content: dict[str, Any]) -> dict[str, str]:
    """The settings of every job but the report, which shows the study as it is written."""
    study = parse_study(content)
    return {
        " ".join([rule, *names.values()]): graph.settings_text(study, rule, names)
        for rule in graph.OUTPUTS.keys() - {"report"}
        for names in graph.jobs(study, rule)
    }


def test_sections_that_are_left_out_mean_their_defaults():
    methods = {"kd": {}, "block_kd": {}, "feature_only": {}}
    short = {name: STUDY[name] for name in REQUIRED} | {"methods": methods}
    defaults = parse_study(short).params
    sections = (
        type(defaults).model_fields.keys() - set(REQUIRED) - {"probe", "loggers"}
    )  # off by default
    assert len(sections) == len(graph.STAGES)
    assert defaults.export is None, "the only section that changes something by being there"
    written = {
        name: getattr(defaults, name).model_dump(mode="json") for name in sections - {"export"}
    }
    assert every_setting(short) == every_setting(short | written)


@pytest.mark.parametrize("nothing", [None, {}])
def test_a_name_with_nothing_after_it_means_its_defaults(nothing):
    blank = {"evaluate": nothing, "distil": nothing, "methods": {"kd": nothing}}
    without = {key: value for key, value in STUDY.items() if key not in blank}
    plain = without | {"methods": {"kd": {}}}
    assert every_setting(STUDY | blank | big(train=nothing)) == every_setting(plain)


def test_a_value_of_a_method_wins_over_that_of_a_pair_and_both_over_the_section():
    sections = {
        "distil": {"epochs": 1, "batch_size": 8, "flip": True, "crop_padding": 1},
        **pair(distil={"epochs": 2, "batch_size": 16}, build={"num_stones": 2, "num_pairs": 1}),
        "methods": {"block_kd": {"distil": {"epochs": 3}, "build": {"num_stones": 3}}},
    }
    study = parse_study(STUDY | sections)
    found = study.distil("pair", "block_kd")
    assert (found.epochs, found.batch_size, found.flip, found.crop_padding) == (3, 16, True, 1)
    built = study.build("pair", "block_kd")
    assert (built.num_stones, built.num_pairs) == (3, 1)


def test_an_override_may_set_a_value_back_to_its_default():
    study = parse_study(STUDY | {"distil": {"flip": True}} | kd(distil={"flip": False}))
    assert study.distil("pair", "kd").flip is Distil().flip is False


# reading and parsing


def test_a_study_is_read_from_its_file(tmp_path):
    assert load_study(write_study(tmp_path)).described == parse_study(STUDY).described


def test_a_study_described_as_json_is_the_same_study():
    study = parse_study(STUDY)
    assert every_setting(study.described) == every_setting(STUDY)
    assert parse_study(study.described).described == study.described


def test_a_folder_in_place_of_the_study_is_said(tmp_path):
    with pytest.raises(KdstepsError, match=r"cannot be read \(Is a directory\)"):
        load_study(tmp_path)


@pytest.mark.parametrize("way", ["__init__", "model_validate", "model_validate_json"])
def test_to_load_and_plan_the_shipped_study_its_file_is_validated_once(monkeypatch, way):
    validated = []
    real = vars(BaseModel)[way]
    function = getattr(real, "__func__", real)

    def counted(first, *arguments, **options):
        kind = first if isinstance(first, type) else type(first)
        if issubclass(kind, Section):
            validated.append(kind)
        return function(first, *arguments, **options)

    monkeypatch.setattr(BaseModel, way, classmethod(counted) if function is not real else counted)
    study = load_study(Path(__file__).parents[1] / "params.yaml")
    for rule in graph.OUTPUTS:
        for names in graph.jobs(study, rule):
            graph.settings_text(study, rule, names)
    assert validated == ([Params] if way == "model_validate_json" else [])


def test_to_load_and_plan_a_study_the_options_of_each_entry_are_validated_once(monkeypatch):
    validated = []
    parse = registry.Part.parse

    def counted(part, *arguments, **options):
        validated.append(part)
        return parse(part, *arguments, **options)

    monkeypatch.setattr(registry.Part, "parse", counted)
    every_setting(STUDY)
    assert len(validated) == sum(len(STUDY[name]) for name in ("datasets", "models", "methods"))
