import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crosstime.base import artifact
from crosstime.pipeline import summary
from crosstime.pipeline.engine import State, Workspace

FOLDERS = {"select": "selection", "evaluate": "evaluation", "attribute": "effects", "report": "report"}
KEYS = {
    "checkpoints",
    "l0",
    "dead_fraction",
    "explained_variance",
    "loss_recovered",
    "delta_ce",
    "labels",
    "completeness_gap",
    "features",
    "ablation_correlation",
    "exact_correlation",
    "validation",
    "seconds",
    "report",
}


@pytest.fixture
def write(tmp_path):
    def write(folder, **files):
        with artifact.writing(tmp_path / folder, settings={}, inputs={}) as draft:
            for name, content in files.items():
                path = draft / name.replace("_", ".")
                if isinstance(content, pa.Table):
                    pq.write_table(content, path)
                else:
                    path.write_text(json.dumps(content))

    return write


@pytest.fixture
def finished(write, tmp_path):
    write(
        "suite",
        sources_json=[{"name": "z", "tokens": 1}, {"name": "a", "tokens": 2_000_000}, {"name": "b", "tokens": None}],
    )
    write("selection", checkpoints_json=[{"name": "a", "sha256": "x"}, {"name": "b", "sha256": "y"}])
    write(
        "evaluation",
        metrics_json={
            "checkpoints": ["a", "b"],
            "l0": 12.5,
            "dead_fraction": 0.01,
            "explained_variance": [0.9, 0.8],
            "loss_recovered": [0.97, None],
            "delta_ce": [0.1, 0.2],
        },
    )
    write("diagnostics", summary_json={"labels": {"late": 1200, "persistent": 0, "artefact": 3}})
    write(
        "effects",
        tasks_json=[{"gap": [0.001, 0.002]}, {"gap": [0.004, None]}],
        features_parquet=pa.table(
            {
                "feature": [0, 1, 0, 1],  # two features on two tasks
                "lifecycle": ["emerged", "emerged", "emerged", "dropped"],
                "class": ["specific:b", "shared:a+b", "specific:b", "specific:a"],
            }
        ),
    )
    write(
        "ablation",
        summary_json={"correlation": math.nan},
        exact_json=[{"ie": 0.9, "rel_ie": None}, {"ie": 0.7, "rel_ie": 0.8}],
        validation_parquet=pa.table(
            {
                "first": ["a", None, None],
                "top_k": [100, 10, 100],
                "rel_ie": [0.1, 0.2, 0.75],
                "rel_dec": [0.1, 0.2, math.nan],
            }
        ),
    )
    write("report", index_html="page")
    return tmp_path


def test_before_anything_is_computed_all_is_null(tmp_path):
    found = summary.headline(Workspace(tmp_path, None), FOLDERS)
    assert set(found) == KEYS
    assert found.pop("seconds") == {}
    assert set(found.values()) == {None}
    assert "not yet written" in summary.table({**found, "seconds": {}})


def test_the_numbers_of_a_finished_run(finished):
    found = summary.headline(Workspace(finished, None), FOLDERS)
    assert set(found) == KEYS
    assert found["checkpoints"] == [{"name": "a", "tokens": 2_000_000}, {"name": "b", "tokens": None}]
    assert found["l0"] == 12.5
    assert found["explained_variance"] == {"a": 0.9, "b": 0.8}
    assert found["loss_recovered"] == {"a": 0.97, "b": None}
    assert found["completeness_gap"] == 0.004
    assert found["labels"] == {"late": 1200, "persistent": 0, "artefact": 3}
    features = found["features"]
    assert (features["emerged"], features["maintained"], features["dropped"]) == (2, 0, 1)
    assert features["classes"] == {"shared:a+b": 1, "specific:a": 1, "specific:b": 1}
    assert found["ablation_correlation"] is None
    assert found["exact_correlation"] == {"ie": pytest.approx(0.8), "rel_ie": pytest.approx(0.8)}
    assert found["validation"] == {"top_k": 100, "rel_ie": 0.75, "rel_dec": None}
    assert set(found["seconds"]) == set(FOLDERS)
    assert found["report"] == str(finished / "report" / "index.html")
    json.dumps(found, allow_nan=False)


def test_the_table_is_aligned(finished):
    lines = summary.table(summary.headline(Workspace(finished, None), FOLDERS)).splitlines()
    assert lines[0].startswith("report")
    rows = {line.split("  ")[0].strip(): line for line in lines}
    ends = {len(rows[label]) for label in ("checkpoints", "tokens seen", "explained variance", "loss recovered")}
    assert len(ends) == 1
    assert "2 emerged, 0 maintained, 1 dropped" in rows["features, on any task"]
    assert rows["features by decoder"].endswith("1,200 late, 3 artefact")
    assert rows["completeness gap"].endswith("0.40 %")
    assert rows["exact effects"].endswith("Spearman 0.800 with IE, 0.800 with RelIE")
    assert rows["ablation ratio"].endswith("Spearman 0.750 with RelIE, - with RelDec")


def test_several_stand_side_by_side(finished, tmp_path_factory):
    done = summary.headline(Workspace(finished, None), FOLDERS)
    empty = summary.headline(Workspace(tmp_path_factory.mktemp("empty"), None), FOLDERS)
    lines = summary.comparison({"one": done, "not yet": empty, "two": done | {"l0": 1234.5}}).splitlines()
    assert lines[0].split() == ["one", "not", "yet", "two"]
    rows = {line.split("  ")[0]: line.split()[-3:] for line in lines}
    assert rows["L0"] == ["12.5", "-", "1234.5"]
    assert rows["explained variance, b"] == ["0.800", "-", "0.800"]
    assert rows["late by decoder"] == ["1,200", "-", "1,200"]
    assert rows["dropped, on any task"] == ["1", "-", "1"]
    assert rows["exact effects and RelIE, Spearman"] == ["0.800", "-", "0.800"]
    assert len({len(line) for line in lines[: lines.index("")]}) == 1
    assert rows["report not yet"] == ["not", "yet", "written"]
    assert summary.comparison({"a": empty, "b": empty}).count("\n") == 1


def test_states_are_told_apart_only_where_they_differ():
    done, stale = State("done"), State("stale", "training.lr changed")
    found = {
        "a": {"suite": done, "train": done},
        "b": {"suite": done, "train": stale},
        "c": {"suite": done, "train": done},
    }
    assert summary.statuses(found).splitlines() == ["suite  done", "train  a, c: done; b: stale: training.lr changed"]
    assert summary.statuses({"": found["b"]}).splitlines()[1] == "train  stale: training.lr changed"


def test_damage_is_found(finished):
    path = finished / "evaluation" / "metrics.json"
    path.write_text(path.read_text().replace("0.9", "0.8"))
    with pytest.raises(ValueError, match=r"metrics\.json is altered or damaged"):
        summary.headline(Workspace(finished, None), FOLDERS)
