"""`kdsteps options`: what params.yaml can name, and the options of one."""

from __future__ import annotations

import pytest

from kdsteps.cli.main import main
from kdsteps.cli.options import SECTIONS
from kdsteps.study import registry

EVERY = [(section, name) for section, kind in SECTIONS.items() for name in registry.names(kind)]


def printed(capsys, *words: str) -> str:
    assert main(["options", *words]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_every_part_is_listed_with_what_it_is(capsys):
    text = printed(capsys)
    for section, name in EVERY:
        summary = registry.find(SECTIONS[section], name, "").json_schema["description"]
        assert f"{name} {' '.join(summary.split())}" in text


def test_one_section_is_listed_alone(capsys):
    text = printed(capsys, "models")
    assert "cifar_resnet" in text
    assert "block_kd" not in text


@pytest.mark.parametrize(("section", "name"), EVERY)
def test_every_option_of_a_part_is_described(capsys, section, name):
    text = printed(capsys, section, name)
    properties = registry.find(SECTIONS[section], name, "").json_schema.get("properties", {})
    for option, schema in properties.items():
        assert f"{option}: " in text
        assert " ".join(schema["description"].split()) in text


def test_a_method_says_what_it_needs(capsys):
    needs = "needs the teacher's logits, and labels, unless labels_weight: 0"
    assert needs in printed(capsys, "methods", "kd")
    needs = "needs the teacher's inner layers, and no labels"
    assert needs in printed(capsys, "methods", "embedding")


def test_a_method_of_ones_own_has_its_options_described(capsys, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from kdsteps.methods.kd import KD\n\n\n"
        "class Mine(KD):\n"
        '    """What I try."""\n\n'
        "    def __init__(self, *given, sharpness: float = 2.5, **options):\n"
        '        """Args:\n        sharpness: How sharp it is.\n        """\n'
        "        super().__init__(*given, **options)\n"
    )
    monkeypatch.chdir(tmp_path)
    text = printed(capsys, "methods", "./mine.py:Mine")
    assert "What I try." in text
    assert "sharpness: 2.5 (number) How sharp it is." in text
    source = (tmp_path / "mine.py").read_text()
    (tmp_path / "plain.py").write_text(source.replace('    """What I try."""\n\n', ""))
    assert main(["options", "methods", "./plain.py:Mine"]) == 0
    assert capsys.readouterr().out.startswith("method ./plain.py:Mine\n")


def test_a_name_that_does_not_exist_has_a_suggestion(capsys):
    assert main(["options", "methods", "fitnes"]) == 2
    assert "there is no method 'fitnes'; did you mean 'fitnet'?" in capsys.readouterr().err
