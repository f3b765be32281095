"""The examples of docs/extending.md run as they stand, one after another."""

import re
from pathlib import Path

EXTENDING = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", EXTENDING, flags=re.MULTILINE | re.DOTALL))


def run(section):
    """The names that the examples of a section define."""
    names = {}
    for block in re.findall(r"```python\n(.*?)```", SECTIONS[section], flags=re.DOTALL):
        exec(compile(block, f"docs/extending.md: {section}", "exec"), names)
    return names


def test_every_section_has_an_example():
    assert "A new task" in SECTIONS
    assert all("```python" in text for text in SECTIONS.values())


def test_a_new_task(capsys):
    names = run("A new task")
    printed = capsys.readouterr().out
    assert "4 prompts, skipped: {}" in printed
    assert "There, on the table, she met one | <|endoftext|> There, on the table, she met two" in printed
    assert names["found"].token_accuracy.shape == (2, 1)
