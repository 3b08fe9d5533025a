"""What params.yaml may say: every mistake gets one sentence that names its place and the remedy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from _commands import NET, STUDY, write_study
from pydantic import BaseModel, Field, PositiveInt

from kdsteps.errors import KdstepsError
from kdsteps.jobs import graph
from kdsteps.study.messages import shown, wanted
from kdsteps.study.settings import Distil, merge
from kdsteps.study.study import Study, load_study, parse_study
from kdsteps.study.yaml_text import NotYaml, read_yaml

NAN = float("nan")
RUN = {"pair": "pair", "method": "kd", "seed": "0"}


def said(**sections: Any) -> str:
    """What is said of the small study with some sections replaced."""
    with pytest.raises(KdstepsError) as raised:
        parse_study(STUDY | sections)
    return str(raised.value)


def kd(**options: Any) -> dict[str, Any]:
    return {"methods": {"kd": options}}


def big(**options: Any) -> dict[str, Any]:
    return {"models": {"big": NET | options, "small": NET}}


def pair(**values: Any) -> dict[str, Any]:
    return {"pairs": {"pair": STUDY["pairs"]["pair"] | values}}


EPOCHS = "it should be a whole number above 0"
STAGES = "stages, quality or a list of pairs of texts"
ENTRY = "should be `key: value` entries"
NAMES = "names become parts of paths and should be up to 80 letters, digits, - and _"


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        # unknown keys, wherever they stand
        ({"sedes": [1]}, "sedes is an unknown key; did you mean 'seeds'?"),
        ({"distil": {"epoch": 3}}, "distil.epoch is an unknown key; did you mean 'epochs'?"),
        (pair(techer="big"), "pairs.pair.techer is an unknown key; did you mean 'teacher'?"),
        (
            pair(distil={"epoch": 3}),
            "pairs.pair.distil.epoch is an unknown key; did you mean 'epochs'?",
        ),
        (
            pair(build={"cut": "stages"}),
            "pairs.pair.build.cut is an unknown key; did you mean 'cuts'?",
        ),
        (kd(temprature=3), "methods.kd.temprature is an unknown key; did you mean 'temperature'?"),
        (kd(distill={}), "methods.kd.distill is an unknown key; did you mean 'distil'?"),
        (
            kd(distil={"epoch": 3}),
            "methods.kd.distil.epoch is an unknown key; did you mean 'epochs'?",
        ),
        (kd(build={"cut": 3}), "methods.kd.build.cut is an unknown key; did you mean 'cuts'?"),
        (big(dept=8), "models.big.dept is an unknown key; did you mean 'depth'?"),
        (
            big(train={"epoch": 3}),
            "models.big.train.epoch is an unknown key; did you mean 'epochs'?",
        ),
        (
            {"datasets": {"digits": {"kind": "digits", "siz": 8}}},
            "datasets.digits.siz is an unknown key; did you mean 'size'?",
        ),
        (
            {"evaluate": {"x": 1}},
            "evaluate.x is an unknown key; there are calibration_bins, latency_runs, batch_size",
        ),
        # wrong types and values
        ({"distil": {"epochs": "5"}}, f"distil.epochs is '5'; {EPOCHS}"),
        ({"distil": {"epochs": 2.0}}, f"distil.epochs is 2.0; {EPOCHS}"),
        ({"distil": {"epochs": True}}, f"distil.epochs is true; {EPOCHS}"),
        ({"distil": {"epochs": None}}, f"distil.epochs is empty; {EPOCHS}"),
        ({"distil": {"epochs": -1}}, f"distil.epochs is -1; {EPOCHS}"),
        ({"distil": {"flip": "yes"}}, "distil.flip is 'yes'; it should be true or false"),
        ({"distil": {"flip": 1}}, "distil.flip is 1; it should be true or false"),
        (
            {"distil": {"learning_rate": float("inf")}},
            "distil.learning_rate is inf; it should be a finite number above 0",
        ),
        (kd(temperature=0), "methods.kd.temperature is 0; it should be a number above 0"),
        (
            kd(temperature=NAN),
            "methods.kd.temperature is nan; it should be a finite number above 0",
        ),
        (
            {"train": {"milestones": [1, -2]}},
            "train.milestones is [1, -2]; it should be a list of whole numbers above 0",
        ),
        (
            {"train": {"momentum": 1}},
            "train.momentum is 1; it should be a number from 0 to below 1",
        ),
        (
            {"train": {"randaugment": 31}},
            "train.randaugment is 31; it should be a whole number from 0 to 30",
        ),
        (
            {"report": {"confidence": 1}},
            "report.confidence is 1; it should be a number between 0 and 1",
        ),
        (
            {"methods": {"loca": {"alpha": 0}}},
            "methods.loca.alpha is 0; it should be a number above 0 and up to 1",
        ),
        ({"report": {"title": 3}}, "report.title is 3; it should be a text"),
        (
            {"train": {"schedule": "cosin"}},
            "train.schedule is 'cosin'; it should be constant, cosine, onecycle or steps",
        ),
        (
            {"datasets": {"digits": {"kind": "digits", "size": 7}}},
            "datasets.digits.size is 7; it should be 8, 16 or 32",
        ),
        (big(depth="8"), f"models.big.depth is '8'; {EPOCHS}"),
        (
            big(widths=[4, 4]),
            "models.big.widths is [4, 4]; it should be a list of 4 whole numbers above 0",
        ),
        (big(checkpoint=3), "models.big.checkpoint is 3; it should be a path"),
        (
            big(train={"epochs": -1}),
            "models.big.train.epochs is -1; it should be a whole number of 0 or more",
        ),
        (
            big(train={"epochs": 0}),
            "pairs.pair.teacher is 'big', which has 0 epochs of training and no weights to begin "
            "with; give it a checkpoint, or train it for an epoch or more",
        ),
        (pair(distil={"epochs": "3"}), f"pairs.pair.distil.epochs is '3'; {EPOCHS}"),
        # unions speak of all their alternatives
        ({"build": {"cuts": "foo"}}, f"build.cuts is 'foo'; it should be {STAGES}"),
        ({"build": {"cuts": [["a"]]}}, f'build.cuts is [["a"]]; it should be {STAGES}'),
        (kd(build={"cuts": 3}), f"methods.kd.build.cuts is 3; it should be {STAGES}"),
        (
            {"build": {"num_stones": 0}},
            "build.num_stones is 0; it should be a whole number above 0 or left out",
        ),
        (
            {"methods": {"block_kd": {"stone_weights": "x"}}},
            "methods.block_kd.stone_weights is 'x'; it should be halving, equal or a list of "
            "numbers of 0 or more",
        ),
        # lists for mappings, and nothing where something has to be
        ({"distil": [1]}, f"distil is [1]; it {ENTRY}"),
        ({"methods": {"kd": 3}}, f"methods.kd is 3; it {ENTRY}"),
        (pair(distil=[1]), f"pairs.pair.distil is [1]; it {ENTRY}"),
        (kd(distil=[1]), "methods.kd.distil is [1]; it should have keys out of epochs, "),
        ({"models": []}, "models is []; it should be at least one entry `name: {family: ...}`"),
        (
            {"models": None},
            "models is empty; it should be at least one entry `name: {family: ...}`",
        ),
        (
            {"pairs": {}},
            "pairs is {}; it should be at least one entry "
            "`name: {dataset: ..., teacher: ..., student: ...}`",
        ),
        (
            {"pairs": {"pair": None}},
            "pairs.pair is empty; it should be entries with dataset, teacher and student",
        ),
        (
            {"pairs": {"pair": {}}},
            "pairs.pair.dataset is missing; it should be a name under datasets (and 2 more)",
        ),
        # names
        (
            {"models": {"my net": NET}},
            f"models has an entry 'my net'; {NAMES}",
        ),
        ({"pairs": {"a/b": {}}}, f"pairs has an entry 'a/b'; {NAMES} (and 3 more)"),
        ({"datasets": {"x" * 81: {}}}, f"datasets has an entry '{'x' * 81}'; {NAMES}"),
        (
            pair(student="smal"),
            "pairs.pair.student is 'smal', which is not under models; did you mean 'small'?",
        ),
        (
            pair(dataset="cifar"),
            "pairs.pair.dataset is 'cifar', which is not under datasets; there is only digits",
        ),
        (
            pair(published="resnet32x4"),
            "pairs.pair.published is 'resnet32x4', of which no published values are known; did you",
        ),
        # parts
        ({"methods": {"kdd": {}}}, "methods.kdd: there is no method 'kdd'; did you mean 'kd'?"),
        (
            {"methods": {"mine": {"method": "kdd"}}},
            "methods.mine.method: there is no method 'kdd'; did you mean 'kd'?",
        ),
        (
            big(family="cifar_resnt"),
            "models.big.family: there is no model family 'cifar_resnt'; did you mean "
            "'cifar_resnet'?",
        ),
        (big(family=["vgg"]), "models.big.family: there is no model family ['vgg']; "),
        (
            {"datasets": {"digits": {"size": 8}}},
            "datasets.digits.kind is missing; there are digits, folder, parquet, torchvision",
        ),
        # seeds
        ({"seeds": 3}, "seeds is 3; it should be a list of whole numbers from 0 to 4294967295, "),
        ({"seeds": [2**32]}, "seeds is [4294967296]; it should be a list of whole numbers from 0"),
        ({"seeds": [0, 0]}, "seeds: 0 stands there twice; once would be right"),
        # what is wrong only together
        (
            {"train": {"nesterov": True, "momentum": 0}},
            "train asks for nesterov without momentum; momentum should be above 0",
        ),
        (
            {"distil": {"momentum": 0}} | kd(distil={"nesterov": True}),
            "methods.kd.distil asks for nesterov without momentum; momentum should be above 0",
        ),
    ],
)
def test_a_mistake_is_said_with_its_place_and_its_remedy(sections, sentence):
    found = said(**sections)
    assert found.startswith(f"params.yaml: {sentence}")
    assert "\n" not in found and "put should" not in found


def test_a_missing_section_is_named():
    with pytest.raises(KdstepsError, match=r"^params.yaml: seeds is missing; it should be a list"):
        parse_study({key: value for key, value in STUDY.items() if key != "seeds"})


def test_a_value_that_is_long_is_cut_short():
    assert shown("x" * 100) == f"'{'x' * 58}…"


@pytest.mark.parametrize("nothing", [None, {}])
def test_a_name_with_nothing_behind_it_means_its_defaults(nothing):
    blank = {"evaluate": nothing, "distil": nothing, "methods": {"kd": nothing}}
    study = parse_study(STUDY | blank | big(train=nothing))
    without = {key: value for key, value in STUDY.items() if key not in blank}
    plain = parse_study(without | {"methods": {"kd": {}}})
    for rule, names in (
        ("train", {"dataset": "digits", "teacher": "big"}),
        ("distil", RUN),
        ("evaluate", RUN),
    ):
        assert graph.settings(study, rule, names) == graph.settings(plain, rule, names)


def test_overrides_may_be_left_blank_as_well():
    assert merge(Distil(epochs=3), None, "methods.kd.distil") == Distil(epochs=3)


def test_overrides_replace_single_values():
    assert merge(Distil(epochs=3, flip=True), {"epochs": 5}, "x") == Distil(epochs=5, flip=True)


# YAML


def test_numbers_are_read_as_people_write_them():
    text = "[5e-4, 1e3, -2.5E+1, .5e1, 5, 0.1, 1e]"
    assert read_yaml(text) == [5e-4, 1000.0, -25.0, 5.0, 5, 0.1, "1e"]


def test_keys_are_texts_as_they_stand_there():
    assert read_yaml("no: 1\n2024: 2\n2024-01-01: 3\n1.50: 4") == {
        "no": 1,
        "2024": 2,
        "2024-01-01": 3,
        "1.50": 4,
    }


def test_a_value_that_looks_like_a_date_is_a_text():
    assert read_yaml("title: 2024-13-45") == {"title": "2024-13-45"}


def test_merged_keys_may_be_replaced():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}"
    assert read_yaml(text)["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a:\n\t- b", 2, "a tab stands there; indent by spaces"),
        ("a: 1\nb: {c: 1, c: 2}", 2, "the key 'c' stands there twice; leave one of them"),
        ("a: 1\na: 2", 2, "the key 'a' stands there twice; leave one of them"),
        (
            "a: b: c",
            1,
            "a colon stands where none can; indent the line as its neighbours, or quote the text",
        ),
        ("a: 1\nfoo", 2, "there is no colon behind the key; write `key: value`"),
        ("a: [1, 2}", 1, "a comma or the closing bracket is missing"),
        ("a: {b: 1 c: 2}", 1, "a comma or the closing bracket is missing"),
        (
            "a:\n  b: 1\n c: 2",
            3,
            "the line does not fit the ones above; indent it as its neighbours, and close every "
            "bracket",
        ),
        ("a: 1\n---\nb: 2", 2, "a second document begins there; leave out the line `---`"),
        ("a: *b", 1, "the name behind `*` is not defined above"),
        ("a: 'b", 1, "a quote or bracket is not closed"),
        ("a: @b", 1, "a character stands there that nothing can begin with; quote the text"),
        ("[1]: 2", 1, "a list or mapping stands where a key should be; quote it"),
        ("a: 1\nb: \x00", 2, "the character '\\x00' cannot stand there; delete it"),
        ("[" * 3000, None, "it is nested too deeply; close the brackets"),
    ],
)
def test_what_is_no_yaml_is_said_with_its_line_and_remedy(text, line, problem):
    with pytest.raises(NotYaml) as raised:
        read_yaml(text)
    assert (raised.value.line, raised.value.problem) == (line, problem)


def test_a_tag_runs_nothing(tmp_path):
    mark = tmp_path / "ran"
    with pytest.raises(NotYaml, match="a tag stands there"):
        read_yaml(f"a: !!python/object/apply:os.mkdir ['{mark}']")
    assert not mark.exists()


def test_an_entry_that_contains_itself_is_refused():
    with pytest.raises(KdstepsError, match="an entry contains itself; write it out instead"):
        parse_study(read_yaml("models: &a {b: *a}"))


def test_a_study_is_read_from_its_file(tmp_path):
    assert load_study(write_study(tmp_path)) == parse_study(STUDY)


def test_a_folder_in_place_of_the_study_is_said(tmp_path):
    with pytest.raises(KdstepsError, match=r"cannot be read \(Is a directory\)"):
        load_study(tmp_path)


# types in words


class Inner(BaseModel):
    a: int
    b: int = 0


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (PositiveInt, "a whole number above 0"),
        (Annotated[float, Field(ge=0, lt=1)], "a number from 0 to below 1"),
        (Annotated[float, Field(ge=0)], "a number of 0 or more"),
        (bool, "true or false"),
        (Literal["a", "b", "c"], "a, b or c"),
        (list[str] | None, "a list of texts or left out"),
        (tuple[PositiveInt, ...], "a list of whole numbers above 0"),
        (tuple[str, str], "a pair of texts"),
        (tuple[tuple[str, str], ...], "a list of pairs of texts"),
        (tuple[int, int, int, int], "a list of 4 whole numbers"),
        (str | tuple[str, ...], "a text or a list of texts"),
        (dict[str, int], "`key: value` entries"),
        (Inner, "entries with a"),
    ],
)
def test_types_are_put_into_words(kind, words):
    assert wanted(kind) == words


def test_every_setting_can_be_put_into_words():
    for name, field in Study.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for key, setting in field.annotation.model_fields.items():
                words = wanted(setting.annotation, setting.metadata)
                assert "value" not in words, f"{name}.{key}: {words}"
