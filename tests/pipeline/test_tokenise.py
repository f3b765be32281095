"""The stage that tokenises the text of a run."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tiny
from crosstime import cli
from crosstime.pipeline import config
from crosstime.pipeline.engine import bring_up_to_date, state
from crosstime.pipeline.run import Shared, runs
from crosstime.pipeline.stages import stages, write_tokens
from crosstime.pipeline.toml import build
from crosstime.text import tokenise
from crosstime.text.corpus import Corpus
from crosstime.text.hub import HubText
from data_hub import serving
from users_run import edit, write_inputs

REPO = "someone/texts"
TASK = {"name": "agreement", "pairs": {"source": "blimp", "sets": ["distractor"]}}


def words(n, language):
    """Documents that say which language and which document they are."""
    return [f"{language} {i}: {tiny.SENTENCES[i % 8]}" for i in range(n)]


LANGUAGES = {"en": words(300, "en"), "fr": words(200, "fr"), "held": words(100, "held")}


@pytest.fixture
def tokenizer(tiny_suite):
    return Shared(Path(), build(config.RunConfig, described(tiny_suite, {"demo": True}))).tokenizer


def described(suite, text):
    return {"suite": {"folder": str(suite)}, "text": {"context": 16, **text}, "task": [TASK]}


@pytest.fixture
def make(tmp_path, tiny_suite):
    """A run with some [text], after its suite."""

    def make(**text):
        (run,) = runs(tmp_path, [build(config.RunConfig, described(tiny_suite, text))])
        if not (tmp_path / "suite").exists():
            (tmp_path / "suite").mkdir()
        return run

    return make


@pytest.fixture
def write(make, tmp_path):
    """What the stage writes for some [text]: training blocks, held-out blocks, and what it says of them."""

    def write(**text):
        draft = tmp_path / "tokens"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        run = make(**text)
        write_tokens(run, draft)
        return (
            run.shared.train_text.blocks,
            run.shared.heldout_text.blocks,
            json.loads((draft / "tokens.json").read_text()),
        )

    return write


def check(run):
    tokenise.check_texts(run.config.text, run.folder, run.shared.tokenizer, run.config.positions)


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    card = ["---", "configs:"]
    for name, documents in LANGUAGES.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for name in ("en", "fr"):
        files = [("train", name), ("validation", "held")]
        paths = ", ".join(f"{{split: {split}, path: {file}.jsonl.gz}}" for split, file in files)
        card.append(f"- {{config_name: {name}, data_files: [{paths}]}}")
    (folder / "README.md").write_text("\n".join([*card, "---"]))
    with serving(REPO, {"main": folder, "other": folder}, tmp_path / "cache") as running:
        yield running


def owners(found, tokenizer):
    """To which language the beginning of each block belongs."""
    return [tokenizer.decode(row[1:]).split(" ")[0] for row in found]


def test_held_out_files_and_a_limit(write, tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("\n\n".join(LANGUAGES["en"]))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"content": text}) + "\n" for text in LANGUAGES["held"]))
    train, heldout, made = write(train="a.txt", heldout="b.jsonl", column="content", limit_tokens=200)
    assert isinstance(train, np.memmap)
    assert np.array_equal(train, Corpus.from_strings(LANGUAGES["en"], tokenizer, context=16).blocks[:12])
    assert np.array_equal(heldout, Corpus.from_strings(LANGUAGES["held"], tokenizer, context=16).blocks)
    assert made["blocks"] == {"train": 12, "heldout": len(heldout)}
    assert [source["name"] for source in made["sources"]] == ["a.txt", "b.jsonl"]
    assert made["sources"][1]["documents"] == 100


def test_a_part_is_held_out_as_before(write, tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("\n\n".join(LANGUAGES["en"]))
    train, heldout, _ = write(train="a.txt", heldout_share=0.25)
    whole = Corpus.from_strings(LANGUAGES["en"], tokenizer, context=16)
    for found, expected in zip((train, heldout), whole.split(0.25), strict=True):
        assert np.array_equal(found, expected.blocks)


def test_patterns_name_files_in_order(write, tmp_path, tokenizer):
    for i in range(3):
        (tmp_path / f"part-{i}.txt").write_text("\n\n".join(LANGUAGES["en"][100 * i : 100 * i + 100]))
    train, heldout, made = write(train="part-?.txt")
    assert len(made["sources"][0]["files"]) == 3
    whole = Corpus.from_strings(LANGUAGES["en"], tokenizer, context=16).blocks
    assert np.array_equal(np.concatenate([train, heldout]), whole)


@pytest.mark.usefixtures("server")
def test_data_sets_have_their_shares_everywhere(write, tokenizer):
    hub = [{"repo": REPO, "config": "en", "share": 0.75}, {"repo": REPO, "config": "fr", "share": 0.25}]
    limit = 16 * 100
    train, heldout, made = write(hub=hub, limit_tokens=limit, heldout_share=0.2, packing="document-start")
    for found, count in ((train, 80), (heldout, 20)):
        names = owners(found, tokenizer)
        assert len(names) == count
        for end in (count // 2, count):
            assert names[:end].count("fr") == end // 4
    assert [source["commit"] for source in made["sources"]] == [HubText.from_revision(REPO).commit] * 2
    # The blocks held out are the last ones of each language.
    numbers = {"en": [], "fr": []}
    for row in heldout:
        language, number = tokenizer.decode(row[1:]).split(":")[0].split(" ")
        numbers[language].append(int(number))
    assert [(len(n), n[0], n[-1]) for n in numbers.values()] == [(15, 60, 74), (5, 20, 24)]


@pytest.mark.usefixtures("server")
def test_a_split_may_be_held_out(write, tokenizer):
    hub = [{"repo": REPO, "config": "en", "heldout_split": "validation"}]
    train, heldout, _ = write(hub=hub, limit_tokens=16 * 100, heldout_share=0.1, packing="document-start")
    assert owners(train, tokenizer) == ["en"] * 100
    assert owners(heldout, tokenizer) == ["held"] * 10


@pytest.mark.usefixtures("server")
def test_shuffled_blocks_come_from_everywhere(write):
    text = {"hub": [{"repo": REPO, "config": "en"}], "limit_tokens": 1600, "packing": "document-start"}
    in_order = np.concatenate(write(**text)[:2])
    train, heldout, _ = write(**text, shuffle_seed=42)
    shuffled = np.concatenate([train, heldout])
    assert not np.array_equal(shuffled, in_order)
    assert sorted(map(bytes, shuffled)) == sorted(map(bytes, in_order))


@pytest.mark.usefixtures("server")
def test_a_data_set_that_is_too_small_is_named(write):
    hub = [{"repo": REPO, "config": name} for name in ("en", "fr")]
    with pytest.warns(UserWarning, match=f"{REPO}/fr/train ends after .* of its 562 blocks"):
        write(hub=hub, limit_tokens=18_000)


def test_a_branch_stays_what_it_was(server, write, tmp_path):
    """The commit that a branch stands for at first holds for the whole run."""
    text = {"hub": [{"repo": REPO, "config": "en"}], "limit_tokens": 1600}
    *_, made = write(**text)
    assert made["sources"][0]["commit"] == server.commit("main")
    shutil.rmtree(tmp_path / "tokenising" / "text-1")
    server.revisions = {"new": server.revisions["main"], server.commit("main"): server.revisions["main"]}
    *_, again = write(**text)
    assert again == made
    tokenise.discard_state(tmp_path)
    with pytest.raises(ValueError, match=f"{REPO} has no revision 'main'; the nearest is 'new'"):
        write(**text)


@pytest.mark.usefixtures("server")
def test_texts_can_be_checked_without_a_trace(make, tmp_path):
    hub = [{"repo": REPO, "config": "en"}]
    check(make(hub=hub, limit_tokens=1600))
    with pytest.raises(ValueError, match="has no split 'tset'; the nearest is 'train'"):
        check(make(hub=[{**hub[0], "split": "tset"}], limit_tokens=1600))
    with pytest.raises(ValueError, match="min_tokens = 3 is too small"):
        check(make(demo=True, packing="document-start", min_tokens=3))
    assert not (tmp_path / "tokenising").exists()


def test_what_is_wrong_with_a_data_set_is_said_before_another_is_read(server, write, tmp_path):
    hub = [{"repo": REPO, "config": "en"}, {"repo": REPO, "config": "de"}]
    with pytest.raises(ValueError, match=f"{REPO}: there is no configuration 'de'"):
        write(hub=hub, limit_tokens=1600)
    assert not list(tmp_path.glob("tokenising/text-*"))
    assert server.requests


def test_changes_are_seen(make, tmp_path):
    stage = next(stage for stage in stages(make(demo=True).config) if stage.name == "tokens")
    (tmp_path / "a.txt").write_text("\n\n".join(LANGUAGES["en"]))
    shutil.copy(tmp_path / "a.txt", tmp_path / "b.txt")

    def stale(**text):
        return state(make(**text), stage).reason

    bring_up_to_date([make(train="a.txt")], [stage], lambda _: None)
    assert not (tmp_path / "tokenising").exists()
    assert stale(train="a.txt") == ""
    assert stale(train="b.txt") == ""  # it may move
    assert stale(train="a.txt", heldout_share=0.1) == "text.heldout_share changed"
    assert stale(train="a.txt", packing="document-start") == "text.packing changed"
    assert stale(train="a.txt", heldout="b.txt") == "text.heldout changed"
    assert stale(hub=[{"repo": REPO}], limit_tokens=1600) == "text.limit_tokens, text.hub, text.train and more changed"
    (tmp_path / "a.txt").write_text("\n\n".join(LANGUAGES["fr"]))
    assert stale(train="a.txt") == "text.train changed"


def test_a_killed_run_goes_on_to_the_same_tokens(tmp_path, users_suite):
    run_dir = write_inputs(tmp_path, users_suite)
    script = (
        "import os, signal, sys\n"
        "from crosstime import cli\n"
        "from crosstime.text import corpus, packing\n"
        "packing.BATCH_CHARACTERS = 1000\n"
        "write, calls = corpus.write_text, []\n"
        "def then_die(*arguments):\n"
        "    write(*arguments)\n"
        "    calls.append(arguments)\n"
        "    if len(calls) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "corpus.write_text = then_die\n"
        "sys.exit(cli.main(['run', sys.argv[1], '--until', 'survey']))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(run_dir)], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert not (run_dir / "tokens").exists()
    saved = json.loads((run_dir / "tokenising" / "text-1" / "progress.json").read_text())
    assert saved["progress"]["documents"] > 0
    assert cli.main(["run", str(run_dir), "--until", "survey"]) == 0
    assert not (run_dir / "tokenising").exists()
    seconds = json.loads((run_dir / "tokens" / "manifest.json").read_text())["seconds"]
    assert seconds > saved["seconds"]
    tokenizer = runs(run_dir, config.load(run_dir))[0].shared.tokenizer
    whole = Corpus.from_text(run_dir / "text ü.txt", tokenizer, context=32)
    train, heldout = (np.load(run_dir / "tokens" / f"{name}.npy") for name in ("train", "heldout"))
    assert np.array_equal(np.concatenate([train, heldout]), whole.blocks)


def test_other_settings_redo_only_what_reads_the_text(tmp_path, users_suite, capfd):
    run_dir = write_inputs(tmp_path, users_suite)
    assert cli.main(["run", str(run_dir), "--until", "survey"]) == 0
    capfd.readouterr()
    edit(run_dir, "context = 32", "context = 32\nheldout_share = 0.1")
    assert cli.main(["run", str(run_dir), "--until", "survey"]) == 0
    said = capfd.readouterr().err
    assert "suite: up to date" in said
    assert "tokens: reading the text (text.heldout_share changed)" in said
    assert "survey: every checkpoint on every task (tokens/heldout.npy changed)" in said
