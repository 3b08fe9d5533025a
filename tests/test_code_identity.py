"""The digest of the code behind a job: changed by what decides numbers, by nothing else."""

from __future__ import annotations

import ast
import re
import time
from pathlib import Path

import pytest
from _edits import METHODS, NOTHING, PACKAGE, SOMETHING, STUDY, Edit, changed_jobs, expected_jobs
from _edits import job_digests as digests

from kdsteps.jobs import code_identity, graph
from kdsteps.jobs.identity.digests import Code
from kdsteps.jobs.identity.sources import COMPUTING, NEUTRAL
from kdsteps.study.loading import parse_study


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    return digests()


@pytest.mark.parametrize("edit", NOTHING, ids=lambda edit: edit.name)
def test_an_edit_that_changes_no_number_runs_no_job_again(edit: Edit, before: dict[str, str]):
    assert changed_jobs(edit, before) == set()


@pytest.mark.parametrize("edit", SOMETHING, ids=lambda edit: edit.name)
def test_an_edit_of_what_decides_numbers_runs_its_jobs_again(edit: Edit, before: dict[str, str]):
    assert changed_jobs(edit, before) == expected_jobs(edit, before) != set()


def test_a_study_with_18_methods_is_planned_quickly():
    methods = {name: {} for name in (*METHODS, *_other_methods())}
    study = parse_study({**STUDY, "methods": methods, "seeds": [0, 1, 2]})
    jobs = [(rule, names) for rule in graph.OUTPUTS for names in graph.jobs(study, rule)]
    roots = [code_identity.roots(study, *job) for job in jobs]
    code, started = Code(PACKAGE), time.process_time()
    for job in roots:
        code.digest(job)
    assert len(methods) >= 18
    assert time.process_time() - started < 2  # 0.25 s on an idle machine


def _other_methods() -> list[str]:
    from kdsteps.study import registry

    return [name for name in registry.names("methods") if name not in METHODS]


# The user's own files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def digest(*roots: str) -> str:
    return Code(PACKAGE).digest(roots or ("./mine.py:Mine",))


def written(**files: str) -> str:
    """The digest of `Mine` in mine.py with these files beside it, by name without ending."""
    for name, text in files.items():
        path = Path(f"{name}.py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return digest()


MINE = """
from kdsteps.methods.kd import KD, kd_loss
from helpers import scaled

class Mine(KD):
    def terms(self, batch):
        return {"mine": scaled(kd_loss(batch.a, batch.b, 2.0))}
"""
HELPERS = "FACTOR = 2\n\ndef scaled(x):\n    return FACTOR * x\n\ndef unused(x):\n    return x\n"


def test_a_users_file_counts_with_what_it_uses_of_other_files_and_of_the_package(folder: Path):
    first = written(mine=MINE, helpers=HELPERS)
    assert written(mine=MINE.replace("2.0", "2.5")) != first
    assert written(mine=MINE, helpers=HELPERS.replace("= 2", "= 3")) != first
    assert written(helpers=HELPERS.replace("return x\n", "return -x\n")) == first
    assert written(helpers=HELPERS) == first
    files = {path.name for path in Code(PACKAGE).sources("./mine.py:Mine")}
    assert {"mine.py", "helpers.py", "kd.py", "base.py", "_tensors.py"} <= files


def test_a_package_of_the_user_is_followed_through_relative_imports_and_reexports(folder: Path):
    (folder / "lab").mkdir()
    files = {
        "lab/__init__": "from .nets import build as make\n",
        "lab/nets": "from . import sizes\n\ndef build(n):\n    return n * sizes.WIDTH\n",
        "lab/sizes": "WIDTH = 4\nDEPTH = 3\n",
        "mine": "from lab import make\n\ndef Mine():\n    return make(2)\n",
    }
    first = written(**files)
    assert written(**{"lab/sizes": "WIDTH = 4\nDEPTH = 5\n"}) == first
    assert written(**{"lab/sizes": "WIDTH = 5\nDEPTH = 3\n"}) != first
    assert digest("lab.nets:build") == digest("lab:make")


def test_names_that_several_statements_bind_count_with_all_of_them(folder: Path):
    start = "try:\n    import fast\nexcept ImportError:\n    fast = {}\n"
    text = f"{start}\ndef Mine():\n    return fast\n"
    first = written(mine=text, fast="def f():\n    return 1\n")
    assert written(mine=text.replace("{}", "[]")) != first
    assert written(mine=text, fast="def f():\n    return 2\n") != first


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x = a + 1", "x = a + 1  # why"),
        ("x = a + 1", "x: int = a + 1"),
        ("x = a + 1\n    return [i for i in [x]]", "y = a + 1\n    return [i for i in [y]]"),
        ("def Mine(a, b=2):", "def Mine(a: int, b: 'float' = 2) -> int:"),
        ("x = a + 1", "log.info('%s', a)\n    x = a + 1"),
        ("x = a + 1", "warnings.warn(f'{a}')\n    x = a + 1"),
        ("x = a + 1", "print(a, file=sys.stderr)\n    x = a + 1"),
        ("x = a + 1", "logging.debug(unused(a))\n    x = a + 1"),
        ("'so'", "'so it is'"),
        ("'wrong'", "'not right'"),
        ("x = a + 1", "from os import path\n    x = a + 1"),
        ("x = a + 1", "x = cast(int, a + 1)"),
        ("[i for i in [x]]", "[j for j in [x]]"),
    ],
)
def test_how_a_function_is_written_does_not_count(folder: Path, old: str, new: str):
    assert old in BODY
    first = written(mine=BODY)
    assert written(mine=BODY.replace(old, new)) == first


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a + 1", "a + 2"),
        ("b=2", "b=3"),
        ("x = a + 1", "x = a - 1"),
        ("x = a + 1", "print(a)\n    x = a + 1"),
        ("x = a + 1", "log.handlers.clear()\n    x = a + 1"),
        ("x = a + 1", "log.info('%s', b := a)\n    x = a + 1"),
        ("ValueError", "TypeError"),
        ("assert a", "assert b"),
        ("(a, b=2)", "(a, *, b=2)"),
        ("(a, b=2)", "(b, a=2)"),
        ("def Mine", "@staticmethod\ndef Mine"),
        ("return [i", "return [x"),
        ("x = a + 1", "y = 1\n    x = a + y"),
        ("x = a + 1", "x = 'a' + 1"),
        ("log = logging", "torch.set_num_threads(2)\nlog = logging"),
        ("log = logging", "os.environ['X'] = '1'\nlog = logging"),
    ],
)
def test_what_a_function_does_counts(folder: Path, old: str, new: str):
    assert old in BODY
    first = written(mine=BODY)
    assert written(mine=BODY.replace(old, new, 1)) != first


BODY = """
import logging, os, sys, warnings, torch
from typing import cast

log = logging.getLogger("x")

def unused(x):
    return x

def Mine(a, b=2):
    'so'
    if a < 0:
        text = f'wrong: {a}'
        raise ValueError(text)
    assert a, 'wrong'
    x = a + 1
    return [i for i in [x]]
"""


def test_a_variable_of_the_module_and_one_of_the_function_are_told_apart(folder: Path):
    first = written(mine="x = 1\n\ndef Mine(n):\n    x = n\n    return x\n")
    assert written(mine="x = 2\n\ndef Mine(n):\n    x = n\n    return x\n") == first
    assert written(mine="x = 2\n\ndef Mine(n):\n    y = n\n    return x\n") != first
    first = written(mine="x = 2\n\ndef Mine(n):\n    global x\n    x = n\n    return x\n")
    assert written(mine="x = 3\n\ndef Mine(n):\n    global x\n    x = n\n    return x\n") != first


def test_variables_that_are_read_by_name_keep_their_names(folder: Path):
    text = "def Mine(n):\n    one = n\n    return locals()\n"
    assert written(mine=text) != written(mine=text.replace("one", "two"))


@pytest.mark.parametrize(
    "text",
    [
        "def Mine(n):\n    mode = 'old'\n    return locals()\n",
        "def Mine(n):\n    mode = 'old'\n    return eval('mode')\n",
        "def Mine(n):\n    set_mode()\n    return mode\n"
        "def set_mode():\n    global mode\n    mode = 'old'\n"
        "mode = ''\n",
        "def Mine(n):\n    mode = ''\n"
        "    def set_mode():\n        nonlocal mode\n        mode = 'old'\n"
        "    set_mode()\n    return mode\n",
    ],
    ids=["locals", "eval", "global", "nonlocal"],
)
def test_a_text_counts_where_a_function_does_not_mention_its_variable_again(
    folder: Path, text: str
):
    assert written(mine=text) != written(mine=text.replace("old", "new"))


def test_what_a_module_does_unless_it_is_a_script_counts(folder: Path):
    text = "import os\nif __name__ != '__main__':\n    os.nice(1)\ndef Mine(n):\n    return n\n"
    assert written(mine=text) != written(mine=text.replace("nice(1)", "nice(2)"))
    script = text.replace("!=", "==")
    assert written(mine=script) == written(mine=script.replace("nice(1)", "nice(2)"))


CIRCLE = """
def Mine(n):
    return n and other(n - 1)

def other(n):
    return n and third(n - 2)

def third(n):
    return n and Mine(n - 3)
"""


def test_definitions_that_use_each_other_count_together_by_what_they_do(folder: Path):
    first = written(mine=CIRCLE)
    assert written(mine=CIRCLE.replace("other", "another")) == first
    assert written(mine=CIRCLE.replace("n - 3", "n - 4")) != first
    assert written(mine=CIRCLE.replace("and Mine(n - 3)", "and other(n - 3)")) != first


def test_an_override_counts_through_its_class_and_a_base_through_its_subclass(folder: Path):
    text = "class Base:\n    def f(self):\n        return 1\n\nclass Mine(Base):\n    pass\n"
    first = written(mine=text)
    assert written(mine=text.replace("return 1", "return 2")) != first
    assert written(mine=text.replace("    pass", "    def f(self):\n        return 1")) != first


def test_a_module_that_is_handed_on_as_an_object_counts_as_a_whole(folder: Path):
    text = "import helpers\n\ndef Mine(name):\n    return getattr(helpers, name)\n"
    first = written(mine=text, helpers=HELPERS)
    assert written(helpers=HELPERS.replace("return x\n", "return -x\n")) != first


def test_what_a_decorator_registers_counts_although_nothing_names_it(folder: Path):
    text = "from kit import known, table\n\ndef Mine():\n    return table\n"
    text += "\n@known\ndef f():\n    return 1\n"
    kit = "table = []\n\ndef known(f):\n    table.append(f)\n    return f\n"
    first = written(mine=text, kit=kit)
    assert written(mine=text.replace("return 1", "return 2")) != first


F = "def f(x):\n    return x * 2\n"


@pytest.mark.parametrize(
    ("start", "use"),
    [
        ("from lab import losses", "losses.f(1)"),
        ("import lab.losses", "lab.losses.f(1)"),
        ("import lab.losses as other", "other.f(1)"),
        ("from lab.losses import f", "f(1)"),
        ("import importlib", "importlib.import_module('lab.losses').f(1)"),
        ("", "__import__('lab.losses')"),
    ],
)
def test_a_folder_of_the_users_modules_counts_without_an_init_file(
    folder: Path, start: str, use: str
):
    files = {"mine": f"{start}\n\ndef Mine():\n    return {use}\n", "lab/losses": F}
    first = written(**files)
    assert written(**{"lab/losses": F.replace("2", "3")}) != first


@pytest.mark.parametrize(
    "text",
    [
        f"{F}\ndef Mine():\n    return globals()['f'](1)\n",
        f"{F}\ndef Mine():\n    return eval('f(1)')\n",
        f"import sys\n\n{F}\ndef Mine():\n    return getattr(sys.modules[__name__], 'f')(1)\n",
        "class Base: pass\n\nclass One(Base):\n    a = 2\n\n"
        "def Mine():\n    return Base.__subclasses__()\n",
    ],
    ids=["globals", "eval", "sys.modules", "__subclasses__"],
)
def test_what_a_users_file_finds_by_name_counts_as_a_whole(folder: Path, text: str):
    assert written(mine=text) != written(mine=text.replace("2", "3"))


@pytest.mark.parametrize(
    "base",
    [
        "class Base:\n    def __init_subclass__(cls): table.append(cls)\n",
        "class Meta(type):\n    pass\n\nclass Base(metaclass=Meta):\n    pass\n",
    ],
    ids=["__init_subclass__", "metaclass"],
)
def test_a_class_that_makes_itself_known_counts_although_nothing_names_it(folder: Path, base: str):
    text = f"table = []\n\n{base}\nclass One(Base):\n    a = 2\n\n"
    text += "def Mine():\n    return table\n"
    assert written(mine=text) != written(mine=text.replace("2", "3"))


def test_a_call_counts_whose_result_nothing_reads(folder: Path):
    text = "import torch\nGRID = torch.ones(4)\n_ = torch.manual_seed(2)\n\n"
    text += "def other():\n    return GRID\n\ndef Mine():\n    return 1\n"
    first = written(mine=text)
    assert written(mine=text.replace("2", "3")) != first
    assert written(mine=text.replace("4", "5")) == first


def test_a_metric_does_not_count_for_a_method_in_the_same_file(folder: Path):
    text = "from kdsteps.evaluation.metrics import metric\n\n@metric(better='lower')\n"
    text += "def brier(logits, labels):\n    return 2\n\ndef Mine():\n    return 1\n"
    assert written(mine=text) == written(mine=text.replace("2", "3"))


def test_a_users_method_counts_wherever_the_networks_that_it_deploys_are_built(folder: Path):
    Path("mine.py").write_text("from kdsteps.methods.kd import KD\n\nclass Mine(KD):\n    pass\n")
    mine = {"mine": {"method": "./mine.py:Mine"}}
    study = parse_study({**STUDY, "methods": mine, "export": {"formats": ["safetensors"]}})
    using = {
        rule
        for rule in graph.OUTPUTS
        for names in graph.jobs(study, rule)
        if "./mine.py:Mine" in code_identity.roots(study, rule, names)
    }
    assert using == {"distil", "evaluate", "evaluate_latency", "export"}
    student = {"pair": "pair", "method": "mine", "seed": "0"}
    expected = code_identity.identities(study, graph.node(study, "distil", student))
    assert expected["./mine.py:Mine"] == [code_identity.digest(("./mine.py:Mine",))]


def test_computing_rooms_use_nothing_else_of_planning():
    """What is not code decides no number: settings, tables of parts and names, and messages."""
    harmless = {
        *("entries", "exports", "loading", "messages", "part_checks", "part_imports"),
        *("part_options", "registry", "resolving", "settings", "study", "training_settings"),
    }
    rooms = ("data", "models", "teachers", "plans", "scores", "methods", "training", "evaluation")
    for file in (path for room in rooms for path in (PACKAGE / room).rglob("*.py")):
        for used in re.findall(
            r"^from kdsteps\.study\.(\w+) import", file.read_text(), re.MULTILINE
        ):
            assert used in harmless or f"kdsteps.study.{used}" in COMPUTING, (file, used)


def test_a_field_of_a_class_counts_by_name_default_and_order_and_not_by_type(folder: Path):
    text = "class Mine:\n    a: int = 1\n    b: float = 2\n"
    first = written(mine=text)
    assert written(mine=text.replace("float", "complex")) == first
    assert written(mine=text.replace("float", "ClassVar[float]")) != first
    assert written(mine="class Mine:\n    b: float = 2\n    a: int = 1\n") != first
    assert written(mine=text.replace("b:", "c:")) != first


def test_libraries_count_by_the_name_that_is_used_however_it_was_imported(folder: Path):
    first = written(mine="import torch.nn.functional as F\n\ndef Mine(x):\n    return F.relu(x)\n")
    same = "from torch.nn import functional\n\ndef Mine(x):\n    return functional.relu(x)\n"
    assert written(mine=same) == first
    assert written(mine=same.replace("relu", "gelu")) != first


TIMES_W = "\n\ndef Mine(x):\n    return x * W\n"


def test_of_names_that_star_imports_bind_the_last_one_counts(folder: Path):
    for imports in ("from a import *\nfrom b import *", "W = 0\nfrom b import *"):
        first = written(mine=imports + TIMES_W, a="W = 1\n", b="W = 2\n")
        assert written(a="W = 3\n") == first
        assert written(b="W = 3\n") != first
    later = written(mine="from b import *\nW = 0" + TIMES_W)
    assert written(b="W = 4\n") == later


@pytest.mark.parametrize("indent", ["", "    "])
def test_what_is_done_without_a_type_checker_counts(folder: Path, indent: str):
    lines = "if TYPE_CHECKING:\n    W = 0\nelse:\n    W = 1\n"
    body = "".join(f"{indent}{line}\n" for line in lines.splitlines())
    head = "from typing import TYPE_CHECKING\n"
    code = f"{head}def Mine(x):\n{body}    return x * W\n" if indent else head + body + TIMES_W
    first = written(mine=code)
    assert written(mine=code.replace("W = 1", "W = 2")) != first
    if indent:
        assert written(mine=code.replace("W = 0", "W = 3")) == first


@pytest.mark.parametrize(
    "line",
    [
        "done: float = patch(1)",
        "a, b = patch(1)",
        "y = patch(1) or 3",
        "y = [patch(i) for i in (1, 2)]",
        "if True:\n    y = patch(1)",
        "try:\n    @patch\n    def f(): ...\nexcept ImportError:\n    pass",
    ],
)
def test_a_line_that_acts_counts_wherever_it_is(folder: Path, line: str):
    helper = "import torch\n\ndef patch(x):\n    torch.scale = 1\n    return x\n"
    code = f"from helper import patch\nW = 1\n{line}\n{TIMES_W}"
    first = written(mine=code, helper=helper)
    assert written(helper=helper.replace("scale = 1", "scale = 2")) != first
    script = (
        f"from helper import patch\nW = 1\nif __name__ == '__main__':\n    x = patch(1)\n{TIMES_W}"
    )
    first = written(mine=script)
    assert written(helper=helper.replace("scale = 1", "scale = 3")) == first


def test_a_module_that_is_imported_by_name_counts(folder: Path):
    for call in ('import_module("a")', 'import_module(name="a")'):
        code = f"from importlib import import_module\n\ndef Mine(x):\n    return x * {call}.W\n"
        first = written(mine=code, a="W = 1\n")
        assert written(a="W = 2\n") != first


@pytest.mark.parametrize(
    "root", ["kdsteps.methods.nothing:KD", "kdsteps.methods.kd:Nothing", "./no.py:A"]
)
def test_a_root_that_is_not_there_is_an_error(folder: Path, root: str):
    with pytest.raises(ValueError, match=re.escape(root.split(":")[0])):
        digest(root)


def test_the_digest_is_the_same_on_every_python(folder: Path):
    (folder / "mine.py").write_text(SYNTAX)
    assert digest("./mine.py") == "08645e27b6cfe6e4"  # found on 3.11 to 3.14


SYNTAX = r'''
from __future__ import annotations
import math
from dataclasses import dataclass, field

@dataclass(frozen=True)
class Mine:
    """Text."""
    é: list[float] = field(default_factory=list)

    def f(self, x, /, *args, k=-1.5e-7, **more) -> str:
        match x:
            case {"a": [first, *others], **rest} if others:
                return f"{first!r:>{len(rest)}}{math.pi:.3f}" "ü\n" f"{k=}"
            case str() | None as y:
                x = [lambda z, w=y: (z, w, *args)] if (n := len(more)) else f""
        try:
            with open("x") as file, open("y"):
                x = b"\x00" + 1j ** 10**20
        except* (OSError, ValueError) as error:
            raise RuntimeError(f"{error}") from error
'''


# What the package promises, so that its code can be followed


def _followed() -> list[Path]:
    """The files of the package in which the code of a job may be."""
    others = {*NEUTRAL, "rehearsal", "__main__.py"}  # `kdsteps check` runs jobs, as commands do
    files = sorted(PACKAGE.rglob("*.py"))
    return [file for file in files if file.relative_to(PACKAGE).parts[0] not in others]


@pytest.mark.parametrize("file", _followed(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_code_is_found_by_name_only_where_roots_cover_it(file: Path):
    found = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and not (isinstance(node.func, ast.Attribute) and node.func.attr == "eval")
    }
    dynamic = {"import_module", "__import__", "eval", "exec", "globals", "entry_points"}
    assert not found & dynamic  # parts are loaded by the registry and are roots of jobs


@pytest.mark.parametrize("file", _followed(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_importing_a_module_of_the_package_does_nothing_but_define(file: Path):
    from kdsteps.jobs.identity.sources import Source

    effects = Source(file, "", True, ast.parse(file.read_text()).body).effects
    lines = [ast.unparse(statement) for statement in effects]
    assert [line for line in lines if not line.startswith("warnings.filterwarnings('ignore'")] == []


TWINS = """
class Low(ValueError): pass
class High(ValueError): pass
FIRST, SECOND = [], []
LOWER = []
UPPER = []

def check(x):
    if x < 0:
        raise Low(x)
    UPPER.append(x)

def Mine(x):
    try:
        check(x)
    except Low:
        return LOWER
    return 1
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [("except Low", "except High"), ("return LOWER", "return UPPER"), ("raise Low", "raise High")],
)
def test_which_of_two_equal_objects_is_used_counts(folder: Path, before: str, after: str):
    first = written(mine=TWINS)
    assert written(mine=TWINS.replace(before, after)) != first


def test_the_names_of_equal_objects_do_not_count(folder: Path):
    first = written(mine=TWINS)
    assert written(mine=re.sub(r"\bHigh\b", "Above", TWINS)) == first
    swapped = re.sub(r"\bHigh\b|\bLow\b", lambda m: {"High": "Low", "Low": "High"}[m[0]], TWINS)
    assert written(mine=swapped) == first


def test_of_two_equal_functions_or_constants_either_may_be_used(folder: Path):
    text = "A = 2\nB = 2\n\ndef f(x):\n    return x\n\ndef g(x):\n    return x\n"
    first = written(mine=f"{text}\ndef Mine(x):\n    return f(x) + f(x) * A + A\n")
    assert written(mine=f"{text}\ndef Mine(x):\n    return f(x) + g(x) * A + B\n") == first


def test_an_operator_that_is_called_by_its_name_in_a_registry_counts(folder: Path):
    text = """
import torch

@torch.library.custom_op("mine::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2

def Mine(x):
    return torch.ops.mine.twice(x)
"""
    first = written(mine=text)
    assert written(mine=text.replace("x * 2", "x * 3")) != first


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ('os.path.join(os.path.dirname(__file__), "lib")', "lib"),
        ('"lib/inner"', "lib/inner"),
        ("os.path.dirname(os.path.dirname(os.path.abspath(__file__)))", "."),
    ],
)
def test_a_folder_that_the_users_code_adds_to_the_path_is_followed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, path: str, place: str
):
    (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / "study").mkdir()
    monkeypatch.chdir(folder if place != "." else folder / "study")
    start = f"import os, sys\nsys.path.insert(0, {path})\nfrom sizes_of_mine import WIDTH\n"
    Path("mine.py").write_text(f"{start}\ndef Mine():\n    return WIDTH\n")
    sizes = folder / place / "sizes_of_mine.py"
    sizes.write_text("WIDTH = 4\nDEPTH = 3\n")
    first = digest()
    sizes.write_text("WIDTH = 4\nDEPTH = 5\n")
    assert digest() == first
    sizes.write_text("WIDTH = 5\nDEPTH = 3\n")
    assert digest() != first
