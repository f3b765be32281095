"""Annotations of a run: the sheet made from its artifacts, and the import of filled-in sheets."""

import csv
import json

import numpy as np
import pytest

from crosstime import cli
from crosstime.attribution.features import FeatureTable, long_table
from crosstime.base import artifact
from crosstime.evaluation.contexts import Context, FeatureContexts, save_contexts
from crosstime.pipeline import preset
from crosstime.pipeline.annotations import annotations_hash, read_annotations
from crosstime.pipeline.engine import Workspace
from crosstime.report.annotation import Annotation

NAMES = ("step256", "step1000", "step3786")


@pytest.fixture
def run_dir(tmp_path):
    """A run folder with the artifacts that a sheet is made from."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.toml").write_text(preset.text("demo"), encoding="utf-8")
    values = np.arange(6, dtype=np.float32) + np.arange(3, dtype=np.float32)[:, None]
    columns = {"class": ["shared"] * 6} | dict.fromkeys(("ie", "rel_ie", "decoder_norm"), values)
    contexts = {
        n: FeatureContexts(n, [Context(["=The", " keys"], [0.0, 1.0], 1)], {NAMES[2]: []}, {}, 1.0) for n in range(6)
    }
    for name in ("selection", "crosscoder", "effects", "contexts"):
        with artifact.writing(folder / name, settings={}, inputs={}) as draft:
            if name == "selection":
                (draft / "checkpoints.json").write_text(json.dumps([{"name": name} for name in NAMES]))
            elif name == "crosscoder":
                (draft / "config.json").write_text('{"features": 6}')
            elif name == "effects":
                FeatureTable(long_table("sv", NAMES, np.arange(6), columns)).save(draft)
            else:
                save_contexts(draft / "contexts.json", contexts)
    return folder


def _annotate(path, annotator, categories):
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    filled = path.with_name(f"{annotator}.csv")
    with filled.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=";")
        writer.writeheader()
        writer.writerows([{**row, "category": categories[int(row["feature_id"])]} for row in rows])
    return filled


def test_out_and_back_with_agreement(run_dir, tmp_path, capfd):
    sheet = tmp_path / "sheet.csv"
    assert cli.main(["annotate", "export", str(run_dir), str(sheet), "--top", "4", "--blind"]) == 0
    assert "=The" in sheet.read_text(encoding="utf-8-sig")
    assert "rel_ie" not in sheet.read_text(encoding="utf-8-sig")
    before = annotations_hash(Workspace(run_dir, None))
    ann, mary = _annotate(sheet, "ann", "xyxyxy"), _annotate(sheet, "mary", "xyxyyx")
    assert cli.main(["annotate", "import", str(run_dir), str(ann), str(mary)]) == 0
    out, _ = capfd.readouterr()
    # Features 2 to 5: ann x y x y, mary x y y x; p = 1/2, q = 1/2.
    assert "ann and mary: 4 features, 50% alike, Cohen's kappa 0.00" in out
    rows = json.loads((run_dir / "annotations" / "annotations.json").read_text())
    assert len(rows) == 8
    assert rows[0].keys() == {"feature", "annotator", "description", "languages", "category"}
    assert Annotation(2, "mary", category="x") in read_annotations(Workspace(run_dir, None))
    (agreement,) = json.loads((run_dir / "annotations" / "agreement.json").read_text())
    assert agreement == {"annotators": ["ann", "mary"], "features": 4, "same": 0.5, "kappa": 0.0}
    assert annotations_hash(Workspace(run_dir, None)) != before  # the report is stale now


def test_a_second_import_replaces_the_first(run_dir, tmp_path):
    sheet = tmp_path / "sheet.json"
    assert cli.main(["annotate", "export", str(run_dir), str(sheet), "--top", "1"]) == 0
    for word in ("first", "second"):
        rows = json.loads(sheet.read_text(encoding="utf-8"))
        sheet.write_text(json.dumps([{**row, "description": word} for row in rows]), encoding="utf-8")
        assert cli.main(["annotate", "import", str(run_dir), str(sheet)]) == 0
    assert [a.description for a in read_annotations(Workspace(run_dir, None))] == ["second"]


def test_mistakes_are_one_line(run_dir, tmp_path, capfd):
    sheet = tmp_path / "sheet.csv"
    assert cli.main(["annotate", "export", str(run_dir), str(sheet), "--top", "1000"]) == 2
    assert "the top 20 features: raise contexts.top_k" in capfd.readouterr().err
    assert cli.main(["annotate", "export", str(run_dir), str(sheet)]) == 0
    assert cli.main(["annotate", "import", str(run_dir), str(sheet)]) == 2
    assert "no annotations found in" in capfd.readouterr().err
    assert cli.main(["annotate", "import", str(run_dir)]) == 2
    assert "name the sheets" in capfd.readouterr().err
    assert cli.main(["annotate", "import", str(run_dir), str(tmp_path / "no.csv")]) == 2
    assert "no.csv: No such file" in capfd.readouterr().err
    sheet.write_text("filled in")
    assert cli.main(["annotate", "export", str(run_dir), str(sheet)]) == 2
    assert "already exists and may have been filled in" in capfd.readouterr().err
    assert sheet.read_text() == "filled in"
    assert read_annotations(Workspace(run_dir, None)) == []


def test_a_run_that_has_not_reached_the_stage(run_dir, tmp_path, capfd):
    artifact.discard(run_dir / "effects", run_dir)
    assert cli.main(["annotate", "export", str(run_dir), str(tmp_path / "x.csv")]) == 2
    assert f"has no effects yet: run `crosstime run {run_dir}` first" in capfd.readouterr().err


def test_the_commands_within_annotate(capfd):
    for arguments in (["annotate", "--help"], ["annotate", "export", "--help"], ["annotate", "import", "--help"]):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 0
        shown = capfd.readouterr().out
        assert arguments[-2] in shown
        assert "annotators" in shown
    assert cli.main(["annotate", "exprt"]) == 2
    assert "unknown command `exprt`; the nearest is 'export'" in capfd.readouterr().err
