"""Parts by name: options in ordinary Python semantics, references, and a cache without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from _commands import STUDY

from kdsteps.errors import KdstepsError, nearest
from kdsteps.methods import base, lskd
from kdsteps.study import part_cache, registry
from kdsteps.study.part_imports import PACKAGE, method_in

ALL = [(kind, name) for kind in ("methods", "models", "data") for name in registry.names(kind)]

METHOD = """
from typing import Annotated, Literal
from pydantic import Field, PositiveFloat
from kdsteps.methods.base import Method
from kdsteps.methods.kd import KD

print("{}")  # which the process that imports this must not take for an answer

Fraction = Annotated[float, Field(ge=0, lt=1)]
START = 0.25

class Mine(KD):
    wants: str = "logits"

    def __init__(self, *given, share: Fraction = START, mode: Literal["a", "b"] = "a", **options):
        super().__init__(*given, **options)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty study folder, the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def write(path: str, text: str) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(dedent(text))
    return path


def problem(kind: Any, reference: Any, where: str = "params.yaml: here") -> str:
    with pytest.raises(KdstepsError) as caught:
        registry.find(kind, reference, where)
    return str(caught.value)


def refused(part: registry.Part, **options: Any) -> str:
    with pytest.raises(KdstepsError) as caught:
        part.parse(options, "params.yaml: methods.mine")
    return str(caught.value)


# what ships with kdsteps


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_shipped_part_is_found_and_where_it_is_said_to_be(kind, name):
    part = registry.find(kind, name, kind)
    module, _, attribute = part.target.rpartition(":")
    assert getattr(import_module(module), attribute) is registry.load(kind, name)
    assert registry.target(kind, name) == part.target


def test_modules_with_an_underscore_are_no_parts():
    assert not [name for _, name in ALL if name.startswith("_")]


OPTIONS_OF_METHODS = {
    "at": "student_layers teacher_layers weight=1000 labels_weight=1 kd_weight=0 kd_temperature=4",
    "block_kd": "alpha=1 beta=1 gamma=1 temperature distance=kd dkd_beta "
    "stone_weights=halving detach_ensemble=true weigh_cross=false cross_student=true norm=eval "
    "stones_per_step=all",
    "ckd": "temperature=1 weight=10 labels_weight=1",
    "contrastive_logits": 'temperature=1 views=["instance","class","category"] weight=10 '
    "labels_weight=1",
    "crd": "student_layer teacher_layer width=128 negatives=16384 temperature=0.07 momentum=0.5 "
    "mode=exact weight=0.8 labels_weight=1 kd_weight=0 kd_temperature=4",
    "dist": "temperature=4 beta=1 gamma=1 weight=2 labels_weight=1",
    "dkd": "temperature=4 alpha=1 beta=8 weight=1 labels_weight=1 warmup=0.08333333333333333 "
    "standardize=false",
    "embedding": "weight=1 local_weight=1 temperature=0.07 queue student_layer teacher_layer",
    "feature_only": "weight=1 mapping=one_to_one distance=mse detach=last classifier_after=0",
    "fitnet": "student_layer teacher_layer weight=100 labels_weight=1 kd_weight=0 kd_temperature=4",
    "kd": "temperature=4 weight=0.9 labels_weight=0.1",
    "labels": "label_smoothing=0",
    "loca": "temperature=4 alpha=0.9 weight=0.9 labels_weight=0.1",
    "lskd": "temperature=2 weight=9 labels_weight=0.1",
    "ofd": "student_layers teacher_layers weight=0.001 labels_weight=1 kd_weight=0 "
    "kd_temperature=4",
    "reviewkd": "student_layers teacher_layers max_width=512 weight=5 labels_weight=1 kd_weight=0 "
    "kd_temperature=4 warmup=0.08333333333333333",
    "rkd": "student_layer teacher_layer distance_weight=25 angle_weight=50 weight=1 "
    "labels_weight=1 kd_weight=0 kd_temperature=4",
    "semckd": "student_layers teacher_layers weight=5 scale_teacher=true labels_weight=1 "
    "kd_weight=1 kd_temperature=4",
    "simkd": "student_layer teacher_layer factor=2 weight=1 labels_weight=0 kd_weight=0 "
    "kd_temperature=4",
    "sld": "temperatures=[1.0,2.0,3.0,4.0,5.0,6.0] weight=0.9 labels_weight=0.1 self_weight=0.9 "
    "self_after=0.625 self_detach=false",
    "sp": "student_layer teacher_layer weight=3000 labels_weight=1 kd_weight=0 kd_temperature=4",
    "uld": "temperature=1 weight=1.5 labels_weight=1",
}
"""The options and defaults that studies rely on; a name alone: empty."""


@pytest.mark.parametrize("name", registry.names("methods"))
def test_a_shipped_method_has_the_options_and_defaults_that_studies_rely_on(name):
    found = registry.find("methods", name, name).parse({}, name)
    words = [word.partition("=") for word in OPTIONS_OF_METHODS[name].split()]
    constants = {"true": True, "false": False, "": None}
    expected = {option: constants.get(value, value) for option, _, value in words}
    assert found.keys() == expected.keys()
    for option, value in found.items():
        right = expected[option]
        is_json = isinstance(value, int | float | list) and isinstance(right, str)
        assert value == (json.loads(right) if is_json else right), option


def test_the_nearest_name_is_offered_and_else_all():
    assert nearest("distill", ("distil", "train")) == "; did you mean 'distil'?"
    assert nearest("x", ("distil", "train")) == "; there are distil, train"
    assert nearest("x", ("distil",)) == "; there is only distil"
    assert nearest("x", ()) == "; there are none"


def test_a_part_that_is_not_there_is_refused_with_the_nearest_name():
    said = problem("models", "vgh", "models.a")
    assert said.startswith("models.a: there is no model family 'vgh'; did you mean 'vgg'")
    assert "there is no method 3" in problem("methods", 3)
    assert "there is no method ['kd']" in problem("methods", ["kd"])


def test_no_unknown_option_is_taken_unless_the_part_takes_any():
    kd, timm = registry.find("methods", "kd", ""), registry.find("models", "timm", "")
    assert "methods.mine.temperatur is an unknown key; did you mean 'temperature'" in refused(
        kd, temperatur=3
    )
    found = timm.parse({"name": "resnet18", "drop_path_rate": 0.1}, "models.a")
    assert found["drop_path_rate"] == 0.1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": True}, "temperature is true; it should be a number"),
        ({"temperature": "3"}, "temperature is '3'; it should be a number"),
        ({"temperature": 0}, "temperature is 0; it should be above 0"),
        ({"temperature": float("nan")}, "it should be a finite number"),
        ({"weight": float("inf")}, "it should be a finite number"),
        ({"weight": None}, "weight is empty; it should be a number"),
        ({"weight": -1, "temperature": -1}, "(and 1 more)"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(options, said):
    assert said in refused(registry.find("methods", "kd", ""), **options)


def test_values_come_back_as_plain_json_with_their_types():
    part = registry.find("methods", "block_kd", "")
    found = part.parse({"stone_weights": [1, 2], "temperature": 3}, "methods.block_kd")
    assert found["stone_weights"] == [1.0, 2.0]
    assert isinstance(found["temperature"], float)
    assert json.loads(json.dumps(found)) == found


def test_a_missing_option_is_named():
    part = registry.find("models", "timm", "")
    with pytest.raises(KdstepsError, match=r"models.a.name is missing"):
        part.parse({}, "params.yaml: models.a")


# code of other people


def test_inheritance_aliases_constants_and_annotated_traits_are_read_as_python_reads_them(folder):
    write("mine.py", METHOD)
    part = registry.find("methods", "./mine.py:Mine", "methods.mine")
    expected = {"temperature": 4, "weight": 0.9, "labels_weight": 0.1, "share": 0.25, "mode": "a"}
    assert part.parse({}, "methods.mine") == expected
    assert (part.wants, part.plan, part.target) == ("logits", None, "./mine.py:Mine")
    assert "share is 1; it should be below 1" in refused(part, share=1)
    assert "'a' or 'b'" in refused(part, mode="c")
    assert "'temperature'" in refused(part, temprature=1)


def test_a_default_changed_by_a_subclass_holds(folder):
    text = "class Hot(Mine):\n    def __init__(self, *networks, weight: float = 2.0, **options):\n"
    text += "        super().__init__(*networks, weight=weight, **options)\n"
    write("mine.py", METHOD + "\n" + text)
    found = registry.find("methods", "./mine.py:Hot", "").parse({}, "")
    assert (found["weight"], found["share"]) == (2.0, 0.25)


def test_a_module_beside_params_yaml_and_what_it_imports_are_found(folder):
    write("lab/__init__.py", "")
    write("lab/sizes.py", "WIDTH = 3")
    text = "from lab.sizes import WIDTH\ndef net(num_classes, width: int = WIDTH): ..."
    write("lab/nets.py", text)
    part = registry.find("models", "lab.nets:net", "")
    assert part.parse({}, "") == {"width": 3}
    assert part.target == "lab.nets:net"


def test_the_entry_points_of_installed_packages_have_names(folder, monkeypatch):
    write("lib/mylab_methods.py", METHOD)
    write("lib/mylab-1.0.dist-info/METADATA", "Name: mylab\nVersion: 1.0\n")
    write(
        "lib/mylab-1.0.dist-info/entry_points.txt",
        "[kdsteps.methods]\nwarm = mylab_methods:Mine\n",
    )
    code = """
        from kdsteps.study import registry
        part = registry.find("methods", "warm", "")
        assert "warm" in registry.names("methods") and "kd" in registry.names("methods")
        print(part.target, part.parse({}, "")["share"])
    """
    assert planned(code, [str(folder / "lib")]) == "mylab_methods:Mine 0.25"


def test_unannotated_arguments_take_any_value_and_given_ones_are_no_options(folder):
    write("net.py", "class Net:\n    def __init__(self, in_channels, num_classes=2, width=8): ...")
    part = registry.find("models", "./net.py:Net", "")
    assert part.parse({"width": [1]}, "") == {"width": [1]}
    assert part.parse({}, "") == {"width": 8}


INEXPRESSIBLE = """
import enum
from pathlib import Path
from collections.abc import Callable
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from decimal import Decimal
class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"
def load(*, path: Path): ...
def tint(*, color: Color): ...
def apply(*, function: Callable[[int], int]): ...
def hidden(*, amount: "Decimal"): ...
def free(*, function: Callable[[int], int] = abs, count: int = 2): ...
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("load", ("'path'", "type Path", "use str")),
        ("tint", ("'color'", "type Color", "use Literal['red', 'blue']")),
        ("apply", ("'function'", "Callable[[int], int]", "Literal")),
        ("hidden", ("'amount'", "Decimal", "outside TYPE_CHECKING")),
    ],
)
def test_an_option_that_params_yaml_cannot_express_is_named_with_what_to_use(folder, name, said):
    write("kinds.py", INEXPRESSIBLE)
    found = problem("data", f"./kinds.py:{name}", "datasets.a.kind")
    assert found.startswith("datasets.a.kind: ")
    assert all(words in found for words in said), found


def test_such_an_option_with_a_default_only_matters_once_it_is_set(folder):
    write("kinds.py", INEXPRESSIBLE)
    part = registry.find("data", "./kinds.py:free", "")
    assert part.parse({}, "") == {"count": 2}
    with pytest.raises(KdstepsError, match=r"datasets.a.function has the type .*Literal"):
        part.parse({"function": "abs"}, "datasets.a")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("./mine.py:MyKd", "./mine.py has no method 'MyKd'; did you mean 'MyKD'"),
        ("./mine.py:Other", "has no method 'Other'; there are MyKD, Third"),
        ("./mein.py:MyKD", "there is no file './mein.py'; did you mean './mine.py'"),
        ("./mine.py", "'./mine.py' does not say which method; add its name in the module"),
        ("nowhere.nets:Net", "there is no module 'nowhere'; install it"),
        ("./mine.py:START", "'./mine.py:START' is a float that is not derived from kdsteps"),
        ("./mine.py:Alone", "is a class that is not derived from kdsteps.methods.base.Method"),
        ("./mine.py:Half", "does not define terms"),
        ("./wrong.py:MyKD", "./wrong.py line 2 is not valid Python"),
        ("./failing.py:MyKD", "ZeroDivisionError: division by zero in line 2 of ./failing.py"),
        ("./lacking.py:MyKD", "No module named 'no_such_library' in line 1 of ./lacking.py"),
        ("./ending.py:MyKD", "SystemExit: 3"),
        (
            "./wants.py:MyKD",
            "wants is 'logit'; it should be one of nothing, logits, blocks, layers",
        ),
        ("./spans.py:MyKD", "lengths is {'begin': 'half'}; it should be {option: number of epochs"),
        ("./spans.py:Other", "lengths has 'begin', which is not one of its options; delete it"),
    ],
)
def test_code_that_cannot_be_used_is_refused_in_a_sentence(folder, reference, said):
    mine = METHOD.replace("Mine", "MyKD") + "\nclass Third(KD): ...\nclass Alone: ...\n"
    write("mine.py", mine + "\nclass Half(Method): ...\n")
    write("wrong.py", "x = 1\ndef f(:\n")
    write("failing.py", "x = 1\n1 / 0\n")
    write("lacking.py", "import no_such_library\n")
    write("ending.py", "raise SystemExit(3)")
    write("wants.py", METHOD.replace("Mine", "MyKD").replace('"logits"', '"logit"'))
    spans = "from kdsteps.methods.kd import KD\n\n\nclass {}(KD):\n    lengths = {}\n"
    both = (("MyKD", {"begin": "half"}), ("Other", {"begin": 0}))
    write("spans.py", "\n\n".join(spans.format(name, lengths) for name, lengths in both))
    found = problem("methods", reference, "params.yaml: methods.mine.method")
    assert found.startswith("params.yaml: methods.mine.method: ")
    assert said in found


def test_two_studies_may_have_files_of_one_name(folder, monkeypatch):
    for name, width in (("one", 1), ("two", 2)):
        write(f"{name}/net.py", f"def net(*, width: int = {width}): ...")
    found = []
    for name in ("one", "two"):
        monkeypatch.chdir(folder / name)
        found.append(registry.find("models", "./net.py:net", "").parse({}, ""))
    assert found == [{"width": 1}, {"width": 2}]


def test_a_module_that_defines_one_method_has_it_found(folder):
    assert method_in(lskd) is registry.load("methods", "lskd")
    with pytest.raises(ValueError, match="defines 0 methods"):
        method_in(base)


# planning: without torch, with a cache


def planned(code: str, path: list[str] | None = None, status: int = 0) -> str:
    """What a fresh process prints that must do without torch."""
    program = "import sys\n" + dedent(code) + "\nassert 'torch' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *(path or [])])},
    )
    assert done.returncode == status, done.stderr
    return done.stdout.strip()


ASK = """
    import pathlib, subprocess
    from kdsteps.errors import KdstepsError
    from kdsteps.study import part_cache, registry
    started = []
    run = subprocess.run
    subprocess.run = lambda *a, **k: started.append(1) or run(*a, **k)
    try:
        registry.find("methods", "kd", "")
        part = registry.find("methods", "./mine.py:Mine", "mine")
        print(part.parse({}, "")["share"], len(started))
    except KdstepsError as error:
        print(error)
"""


@pytest.mark.slow
def test_the_cache_is_valid_until_a_file_that_it_was_read_from_changes(folder):
    write("mine.py", METHOD.replace("START = 0.25", "from start import START"))
    write("start.py", "START = 0.5")
    write("unused.py", "x = 1")
    assert planned(ASK) == "0.5 2"
    assert planned(ASK) == "0.5 0"
    write("unused.py", "x = 2")
    assert planned(ASK) == "0.5 0"
    write("start.py", "START = 0.75")
    assert planned(ASK) == "0.75 1"
    write("mine.py", "def broken(:")
    assert "mine: ./mine.py line 1 is not valid Python" in planned(ASK)
    write("mine.py", METHOD)
    assert planned(ASK) == "0.25 1"
    part_cache.FILE.write_text("{}")
    assert planned(ASK) == "0.25 2"
    content = json.loads(part_cache.FILE.read_text())
    part_cache.FILE.write_text(json.dumps(content | {"made_with": "another version"}))
    assert planned(ASK) == "0.25 1"  # what the study names is described with all else
    part_cache.FILE.write_text(part_cache.FILE.read_text().replace(" over ", " 0ver ", 1))
    assert planned(ASK) == "0.25 1"  # a damaged entry is not used


@pytest.mark.slow
def test_a_part_that_is_described_after_another_has_only_the_files_that_it_uses_itself(folder):
    names = ("one.py", "two.py", "shared.py")
    for name in names[:2]:
        write(name, f"import shared\n{METHOD}")
    write("shared.py", "")
    code = """
        from kdsteps.study import registry
        for name in ("one.py", "two.py"):
            files = registry.find("methods", f"./{name}:Mine", "").described.files
            print(*sorted(file.rpartition("/")[2] for file in files), sep=",")
    """
    apart = planned(code).splitlines()
    users = [{*names} & {*line.split(",")} for line in apart]
    assert users == [{"one.py", "shared.py"}, {"two.py", "shared.py"}]
    content = json.loads(part_cache.FILE.read_text())
    part_cache.FILE.write_text(json.dumps(content | {"made_with": "another version"}))
    assert planned(code).splitlines() == apart  # both are described by one process


@pytest.mark.slow
def test_a_study_depends_on_the_files_of_its_own_code_and_on_no_others(folder):
    """Descriptions are made by a process with torch, some of whose modules name no real file."""
    write("mine.py", "import helper\n" + METHOD)
    write("helper.py", "")
    study = f"parse_study({STUDY | {'methods': {'mine': {'method': './mine.py:Mine'}}}!r})"
    code = f"""
    from kdsteps.jobs.inputs import input_paths
    from kdsteps.study.loading import parse_study
    print(*sorted(map(str, input_paths({study}))))
    """
    assert planned(code) == "helper.py mine.py"


@pytest.mark.slow
def test_a_temporary_experiment_has_the_descriptions_of_its_study(folder, monkeypatch):
    write("mine.py", METHOD)
    assert planned(ASK) == "0.25 2"
    experiment = Path(".dvc/tmp/exps/tmpabc")
    experiment.mkdir(parents=True)
    shutil.copy2("mine.py", experiment)
    monkeypatch.chdir(experiment)
    assert planned(ASK) == "0.25 0"
    write("mine.py", METHOD.replace("START = 0.25", "START = 0.5"))
    assert planned(ASK) == "0.5 1"


@pytest.mark.slow
def test_a_temporary_experiment_may_import_code_from_its_study(folder, monkeypatch):
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as for the command `kdsteps`
    ask = ASK.replace("./mine.py:Mine", "mylib:Mine")
    write("mylib.py", METHOD)
    assert planned(ask, [str(Path.cwd())]) == "0.25 2"
    experiment = Path(".dvc/tmp/exps/tmpabc")
    experiment.mkdir(parents=True)
    shutil.copy2("mylib.py", experiment)
    write("mylib.py", METHOD.replace("START = 0.25", "START = 0.5"))
    path = [str(Path.cwd())]
    monkeypatch.chdir(experiment)
    assert planned(ask, path) == "0.5 1"


@pytest.mark.slow
def test_a_temporary_experiment_has_its_own_files_next_to_the_study(folder, monkeypatch):
    """In a study below the top of its git repository, whose files DVC copies as well."""
    edited = METHOD.replace("START = 0.25", "START = 0.5")
    ask = ASK.replace("./mine.py", "../mine.py")
    experiment = Path("study/.dvc/tmp/exps/tmpabc")
    for top, text in {Path(): edited, experiment: METHOD}.items():
        write(str(top / "mine.py"), text)
        (top / "study").mkdir(exist_ok=True)
    monkeypatch.chdir("study")
    assert planned(ask).startswith("0.5 ")
    monkeypatch.chdir(folder / experiment / "study")
    assert planned(ask).startswith("0.25 ")
    monkeypatch.chdir(folder / "study")
    assert planned(ask).startswith("0.5 ")


@pytest.mark.slow
def test_without_a_place_for_the_cache_planning_goes_on(folder):
    Path(".kdsteps").write_text("a file where the folder should be")
    write("mine.py", METHOD)
    assert planned(ASK) == "0.25 2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("_exit(5)", "hello"),
        ("kill(os.getpid(), 9)", "it was killed; there may be too little memory"),
        ("abort()", "SIGABRT"),
    ],
)
def test_code_that_ends_its_process_is_refused_in_a_sentence(folder, end, said):
    write("mine.py", f"import os\nprint('hello')\nos.{end}")
    assert f"importing './mine.py:Mine' ends the process: {said}" in planned(ASK)


def test_a_study_is_planned_without_torch():
    code = """
        from kdsteps.study.loading import load_study
        from kdsteps.jobs import graph
        study = load_study("params.yaml")
        for rule in graph.OUTPUTS:
            for names in graph.jobs(study, rule):
                graph.settings_text(study, rule, names)
        assert not {"pandas", "pyarrow", "numpy"} & set(sys.modules)
    """
    cwd = os.getcwd()
    os.chdir(PACKAGE.parent)
    try:
        planned(code)
    finally:
        os.chdir(cwd)


# options that types cannot check

CHECKED_NET = """
def build(num_classes, *, width: int = 4, groups: int = 1, depth: int = 2): ...

def other(num_classes, *, width: int = 5): ...

def options_problem(*, width, groups):
    if width == 13:
        raise RuntimeError("unlucky")
    if width % groups:
        return f"groups is {groups}, which does not divide width {width}; use a divisor of it"
"""
TORCHVISION = {"pretrained": False, "small_stem": False, "prefix_tokens": None}
TIMM = TORCHVISION | {"output": None}
CHECKS: list[tuple[str, dict[str, Any], str | None]] = [
    ("cifar_resnet", {"depth": 9}, "depth is 9; it should be 6 n + 2: 8, 14"),
    ("cifar_resnet", {"depth": 14}, None),
    ("wide_resnet", {"depth": 20}, "depth is 20; it should be 6 n + 4: 10, 16"),
    ("shufflenet", {"size": 3.0}, "size is 3; it should be one of 0.5, 1.0"),
    ("vit", {"width": 10, "heads": 4}, "heads is 4, which does not divide width 10"),
    ("timm", TIMM | {"name": "resnet19"}, "name is 'resnet19', which timm does not have; the"),
    ("timm", TIMM | {"name": "resnet18.a9_in1k"}, "resnet18.a1_in1k"),
    ("timm", TIMM | {"name": "resnet18.a1_in1k", "drop_path_rate": 0.1}, None),
    (
        "timm",
        TIMM | {"name": "resnet18", "drop_path_rat": 0.1},
        "drop_path_rat is an unknown key; did you mean 'drop_path_rate'?",
    ),
    ("timm", TIMM | {"name": "resnet18", "features_only": True}, "features_only is true"),
    ("timm", TIMM | {"name": "hf-hub:somebody/network"}, None),
    ("torchvision", TORCHVISION | {"name": "resnet19"}, "the nearest are resnet18"),
    (
        "torchvision",
        TORCHVISION | {"name": "mobilenet_v2", "dropot": 0.1},
        "dropot is an unknown key; did you mean 'dropout'?",
    ),
    ("./net.py:build", {"width": 6, "groups": 4}, "groups is 4, which does not divide width 6"),
    ("./net.py:build", {"width": 6, "groups": 3, "depth": 2}, None),
    ("./net.py:other", {"width": 13}, None),  # the function names options that it does not have
]

FIND_PROBLEMS = """
    import json, pathlib, subprocess
    from kdsteps.study import part_cache, registry
    started = []
    run = subprocess.run
    subprocess.run = lambda *a, **k: started.append(1) or run(*a, **k)
    for name in ("build", "other"):
        registry.find("models", f"./net.py:{name}", "")
    asked = json.loads(pathlib.Path("asked.json").read_text())
    print(json.dumps([part_cache.problems(asked), len(started)]))
"""


@pytest.mark.slow
def test_options_are_checked_by_another_process_and_found_again_in_the_cache(folder):
    write("net.py", CHECKED_NET)
    requests = [("models", name, options) for name, options, _ in CHECKS]
    write("asked.json", json.dumps(requests))
    found, started = json.loads(planned(FIND_PROBLEMS))
    assert started == 3  # to describe all parts, to describe `other`, and for all checks
    for (_, options, said), problem in zip(CHECKS, found, strict=True):
        assert (said is None) == (problem is None), (options, problem)
        assert said is None or said in problem
    assert json.loads(planned(FIND_PROBLEMS)) == [found, 0]
    write("net.py", CHECKED_NET.replace("divisor of it", "divisor"))
    again, started = json.loads(planned(FIND_PROBLEMS))
    assert started == 2  # to describe what the changed file defines, and to check its options
    pairs = zip(CHECKS, found, again, strict=True)
    changed = [options for (_, options, _), before, after in pairs if before != after]
    assert changed == [{"width": 6, "groups": 4}]


@pytest.mark.slow
def test_a_check_that_fails_is_a_sentence_and_not_cached(folder):
    write("net.py", CHECKED_NET)
    code = """
        from kdsteps.errors import KdstepsError
        from kdsteps.study import part_cache, registry
        registry.find("models", "./net.py:build", "")
        try:
            part_cache.problems([("models", "./net.py:build", {"width": 13, "groups": 3})])
        except KdstepsError as error:
            print(error)
    """
    assert planned(code) == (
        "models: options_problem of ./net.py:build raises RuntimeError: unlucky"
    )
    assert json.loads(part_cache.FILE.read_text())["answers"] == []


@pytest.mark.slow
def test_what_is_known_of_options_is_asked_again_when_a_file_that_they_name_changes(folder):
    write(
        "net.py",
        """
        from pathlib import Path
        from torch import nn

        def build(num_classes, *, layout: str):
            width = int(Path(layout).read_text())
            layers = [nn.Conv2d(3, width, 1), nn.Flatten(), nn.Linear(width, num_classes)]
            return nn.Sequential(*layers)

        def options_problem(*, layout):
            return "layout is odd" if int(Path(layout).read_text()) % 2 else None
        """,
    )
    code = """
        from kdsteps.study import part_cache, registry
        registry.find("models", "./net.py:build", "")
        options = {"layout": "width.txt"}
        (network,) = part_cache.outlines([("./net.py:build", options, (3, 1, 1))])
        print(network.parameters, *part_cache.problems([("models", "./net.py:build", options)]))
    """
    write("width.txt", "1")
    assert planned(code) == "24 layout is odd"
    write("width.txt", "2")
    assert planned(code) == "38 None"


@pytest.mark.slow
def test_a_problem_of_options_is_said_with_its_place_while_planning(folder):
    write("net.py", CHECKED_NET)
    study = {
        "datasets": {"d": {"kind": "digits"}},
        "models": {
            "big": {"family": "cifar_resnet", "checkpoint": "a.pt"},
            "small": {"family": "./net.py:build", "groups": 3},
        },
        "pairs": {"p": {"dataset": "d", "teacher": "big", "student": "small"}},
        "methods": {"kd": {}},
        "seeds": [0],
    }
    write("params.yaml", json.dumps(study))
    code = """
        from kdsteps.errors import KdstepsError
        from kdsteps.study.loading import load_study
        try:
            load_study()
        except KdstepsError as error:
            print(error)
    """
    said = planned(code)
    assert said.startswith("params.yaml: models.small.groups is 3, which does not divide width 4; ")
