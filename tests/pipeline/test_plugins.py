"""Plugins: a user's own rules and stages in run.toml."""

import json
import subprocess
import sys

import pytest

from crosstime.pipeline import config, plugins, stages
from crosstime.pipeline.execute import run
from crosstime.report.sections import SECTIONS
from users_run import edit, write_inputs

RULE = """
from dataclasses import dataclass, field

import crosstime as ct


@dataclass(frozen=True)
class Strongest(ct.Sparsity):
    rule: str = field(default="strongest", init=False)
    share: float = 0.5

    def select(self, h, norms, threshold):
        return h * (h >= self.share * h.amax(-1, keepdim=True))
"""
STAGE = """
from pathlib import Path

from crosstime.pipeline.engine import STAGES, Stage
from crosstime.pipeline.run import Run


def count(run: Run, draft: Path) -> None:
    (draft / "count.txt").write_text(str(len(run.shared.read_json("selection/checkpoints.json"))))


STAGES.add(Stage("count", "counted", "counting checkpoints", ("selection",), inputs=("selection",), work=count))
"""
SECTION = """
from crosstime.report.sections import SECTIONS, Section

SECTIONS.add(Section("mine", "Mine", "My section", "{{ m.head(section) }}", present=lambda data: data.many))
"""


@pytest.fixture
def inputs(tmp_path, users_suite):
    return write_inputs(tmp_path / "run", users_suite)


def use(folder, *names):
    text = (folder / "run.toml").read_text(encoding="utf-8")
    (folder / "run.toml").write_text(f"plugins = {json.dumps(names)}\n{text}", encoding="utf-8")


def crosstime(*arguments):
    """In a process of its own, which has imported no plugin yet."""
    done = subprocess.run(
        [sys.executable, "-m", "crosstime", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_a_rule_of_a_plugin_trains_and_its_code_counts_for_what_is_stale(inputs):
    use(inputs, "rules.py")
    (inputs / "rules.py").write_text(RULE)
    edit(inputs, 'rule = "l1"\nweight = 0.1', 'rule = "strongest"\nshare = 0.9')
    (one,) = run(inputs, until="train")
    assert one.crosscoder.config.sparsity.share == 0.9
    assert "plugin rules.py" in json.loads((one.folder_of("crosscoder") / "manifest.json").read_text())["settings"]
    (inputs / "rules.py").write_text(RULE + "\n\n# another line\n")
    with pytest.raises(ValueError, match=r"plugin rules\.py was changed since it was imported: restart Python"):
        run(inputs, until="train")
    code, out, err = crosstime("show", inputs)
    assert code == 0, err
    assert "select     done" in out
    assert "train      stale: plugin rules.py changed" in out


def test_a_stage_of_a_plugin_is_one_of_the_run(inputs):
    use(inputs, "stage.py")
    (inputs / "stage.py").write_text(STAGE)
    code, _, err = crosstime("run", inputs, "--until", "count")
    assert code == 0, err
    assert "count: counting checkpoints" in err
    assert (inputs / "counted" / "count.txt").read_text() == "3"
    code, out, _ = crosstime("show", inputs, "--json")
    assert json.loads(out)["stages"]["count"] == "done"
    edit(inputs, "[crosscoder]", '[crosscoder]\nname = "counted"')
    code, _, err = crosstime("show", inputs)
    assert code == 2
    assert "crosscoder.name 'counted' is reserved" in err


def test_a_section_of_a_plugin_makes_the_report_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(SECTIONS, "_values", dict(SECTIONS._values))
    (tmp_path / "section.py").write_text(SECTION)
    plugins.load_plugins(["section.py"], tmp_path)
    assert SECTIONS["mine"].label == "Mine"
    assert "plugin section.py" in plugins.code_hashes(stages.STAGES["report"].code(None))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\n1 / 0", r"bad\.py:2: ZeroDivisionError: division by zero"),
        ("def f():\n    raise KeyError('k')\n\nf()", r"bad\.py:2: KeyError: 'k'"),
        ("x = (", r"bad\.py:1: SyntaxError: "),
        ("import crosstime.nothing", r"bad\.py:1: ModuleNotFoundError: No module named 'crosstime.nothing'"),
        (STAGE + STAGE, r"bad\.py:24: InputError: there is already a stage 'count'"),
    ],
)
def test_an_error_of_a_plugin_names_its_line(inputs, code, message):
    use(inputs, "bad.py")
    (inputs / "bad.py").write_text(code)
    with pytest.raises(ValueError, match=rf"run\.toml: plugin bad\.py: {inputs}/{message}"):
        config.load(inputs)


def test_what_is_no_plugin_is_refused(inputs):
    use(inputs, "none.py")
    with pytest.raises(ValueError, match=r"plugin none\.py: there is no file .*none\.py"):
        config.load(inputs)
    edit(inputs, "none.py", "no.such.module")
    with pytest.raises(ValueError, match=r"plugin no\.such\.module: ModuleNotFoundError: No module named 'no'"):
        config.load(inputs)
    edit(inputs, '["no.such.module"]', "3")
    with pytest.raises(ValueError, match=r"run\.toml: `plugins` must be a list of strings, not 3"):
        config.load(inputs)


def test_an_installed_package_offers_a_plugin_and_all_its_files_count(inputs, tmp_path, monkeypatch):
    package = tmp_path / "site" / "somebodys"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "rules.py").write_text(RULE.replace("strongest", "packaged"))
    info = tmp_path / "site" / "somebodys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[crosstime.plugins]\nmine = somebodys.rules\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    edit(inputs, 'rule = "l1"\nweight = 0.1', 'rule = "packaged"')
    (found,) = config.load(inputs)
    first = plugins.code_hashes([found.sparsity])
    assert list(first) == ["plugin somebodys.rules"]
    assert plugins.code_hashes([found.training, (3, "x"), len]) == {}


def test_a_bug_of_a_plugin_is_told_from_one_of_crosstime(inputs):
    use(inputs, "faulty.py")
    (inputs / "faulty.py").write_text(RULE.replace("strongest", "faulty").replace("return h", "return h.oops"))
    edit(inputs, 'rule = "l1"\nweight = 0.1', 'rule = "faulty"')
    with pytest.raises(ValueError, match=r"plugin .*/faulty\.py:13: AttributeError: .* \(traceback in .*/error\.log\)"):
        run(inputs, until="train")
    assert "oops" in (inputs / "error.log").read_text()
