import pytest

from crosstime.crosscoder.sparsity.rules import L1, BatchTopK, JumpReLU, TopK
from crosstime.pipeline import annotations, config, preset
from crosstime.pipeline.run import runs
from crosstime.pipeline.stages import STAGES
from crosstime.text import tokenise

PAIRS = 'pairs = { source = "blimp", sets = ["subject-verb"] }'
LEAST = f"""
[suite]
demo = true
[text]
demo = true
[[task]]
name = "agreement"
{PAIRS}
"""


def load(tmp_path, text):
    (tmp_path / "run.toml").write_text(text)
    (found,) = config.load(tmp_path)
    return found


def test_little_has_to_be_said(tmp_path):
    found = load(tmp_path, LEAST)
    assert found.task[0].attribute
    assert found.selection.number == 3
    assert found.positions.bos


def test_every_commented_key_of_the_demo_exists(tmp_path):
    """The comments of the template promise keys: each, switched on in place of what it replaces, is taken."""
    text = preset.text("demo")
    for old, new in (
        ("\ndemo = true                    # the bundled checkpoints", "\n#"),
        ("\ndemo = true                    # the bundled text", "\n#"),
        ("# folder = ", "folder = "),
        ("# tokens = ", "tokens = "),
        ("# allow_duplicates", "allow_duplicates"),
        ("# trust_remote_code", "trust_remote_code"),
        ("# train = ", "train = "),
        ("# column = ", "column = "),
        ("# heldout = ", "heldout = "),
        ("# limit_tokens = ", "limit_tokens = "),
        ("# packing = ", "packing = "),
        ("# min_tokens = ", "min_tokens = "),
        ("# min_characters = ", "min_characters = "),
        ("# shuffle_seed = ", "shuffle_seed = "),
        ('\npairs = { source = "blimp", sets = ["determiner-noun"] }', "\n#"),
        ("# pairs = ", "pairs = "),
        ("# attribute = ", "attribute = "),
        ("# checkpoints = ", "checkpoints = "),
        ("# layer = ", "layer = "),
    ):
        assert old in text
        text = text.replace(old, new)
    found = load(tmp_path, text)
    assert found.suite.folder == "checkpoints"
    assert found.text.heldout == "heldout.txt"
    assert found.text.packing == "document-start"
    found = load(tmp_path, text.replace("\ntrain = ", "\n# train = ").replace("# hub = ", "hub = "))
    assert found.text.hub[0].config == "en"
    assert not found.task[0].attribute
    assert found.crosscoder.layer == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("demo = true\n[text]", "[text]"), r"a suite needs exactly one of .* it has none"),
        (("demo = true\n[text]", 'demo = true\nfolder = "x"\n[text]'), r"it has `demo` and `folder`"),
        (("demo = true\n[text]", 'repo = "a/b"\n[text]'), r"suite\.revisions and `repo` go together"),
        (
            ("demo = true\n[text]", 'folders = ["a", "b"]\nnames = ["a"]\n[text]'),
            r"suite\.names has 1 names for 2",
        ),
        (("[text]\ndemo = true", "[text]"), r"text\.train is missing: name files under `train`, datasets"),
        (("[text]\ndemo = true", '[text]\ntrain = "x"\ndemo = true'), r"text\.demo and `train` exclude each other"),
        (("[text]\ndemo = true", "[text]\ndemo = true\ncontext = 1"), r"text\.context must be at least 2, not 1"),
        (("[text]\ndemo = true", '[text]\ntrain = "x"\nheldout_share = 1'), r"text\.heldout_share must lie between"),
        (("[text]\ndemo = true", '[text]\n[[text.hub]]\nrepo = "a/b"'), r"text\.limit_tokens is missing"),
        *(
            (("[text]\ndemo = true", f"[text]\nlimit_tokens = 1000\n{keys}\nhub = [{hub}]"), message)
            for keys, hub, message in (
                (
                    "",
                    '{repo = "a/b", share = 0.5}, {repo = "a/c", share = 0.4}',
                    r"text\.hub has shares that add up to 0\.9, not to 1",
                ),
                (
                    "",
                    '{repo = "a/b", share = 0.5}, {repo = "a/c"}',
                    r"text\.hub must have a `share` for every dataset,",
                ),
                ("", '{repo = "a/b", share = 1.5}', r"text\.hub 1\.share of 'a/b' must lie between 0 and 1, not 1\.5"),
                ("", '{repo = "a/b", slpit = "x"}', r"\[text\.hub 1\] unknown key `slpit`; the nearest is 'split'"),
                ('heldout = "x"', '{repo = "a/b", heldout_split = "x"}', r"name two held-out texts"),
                ('train = "x"', '{repo = "a/b"}', r"text\.train and `hub` exclude each other"),
            )
        ),
        (("[text]\ndemo = true", '[text]\ntrain = "x"\npacking = "pack"'), r"`packing` must be one of \"packed\""),
        (("[text]\ndemo = true", '[text]\ntrain = "x"\nmin_tokens = 0'), r"text\.min_tokens must be at least 1"),
        (("[text]\ndemo = true", '[text]\ntrain = "x"\nshuffle_seed = -1'), r"text\.shuffle_seed must be at least 0"),
        ((PAIRS, ""), r"task 1\.pairs must name a source of pairs: blimp, clams, columns, .*jsonl, multiblimp"),
        ((PAIRS, "pairs = []"), r"task 1\.pairs must name a source of pairs"),
        ((PAIRS, 'pairs = "blimp"'), r"`task 1\.pairs` must be a section, .*, or a list of sections"),
        ((PAIRS, "pairs = { sets = 'x' }"), r"\[task 1\.pairs\] `source` must be one of \"blimp\", .*; it is missing"),
        ((PAIRS, "pairs = { source = 'blmp' }"), r"`source` must be one of .*; it is \"blmp\"; the nearest is 'blimp'"),
        ((PAIRS, "pairs = { source = 'blimp', set = 'x' }"), r"unknown key `set`; the nearest is 'sets'"),
        (
            (PAIRS, "pairs = [{ source = 'blimp' }, { source = 'blimp', constructions = ['x'] }]"),
            r"\[task 1\.pairs 2\] unknown key `constructions`",
        ),
        ((PAIRS, "pairs = { source = 'clams', location = 'x', counterfactual = true }"), r"key `counterfactual`"),
        ((PAIRS, "pairs = { source = 'clams' }"), r"task 1\.pairs\.location must be a folder or a dataset repository"),
        ((PAIRS, "pairs = { source = 'jsonl' }"), r"task 1\.pairs\.files must name at least one file"),
        ((PAIRS, "pairs = { source = 'columns', good = 'a', bad = 'b' }"), r"pairs\.files or `repo` must say where"),
        (
            (PAIRS, "pairs = { source = 'columns', files = 'x' }"),
            r"pairs\.good and `bad`, or `prefix`, .* must name columns",
        ),
        (
            (PAIRS, "pairs = { source = 'columns', files = 'x', prefix = 'p', right = 'r' }"),
            r"pairs\.wrong is missing: `prefix` and `right` and `wrong` go together",
        ),
        ((PAIRS, f"{PAIRS}\nmax_pairs = 0"), r"task 1\.max_pairs must be at least 1"),
        ((PAIRS, f"{PAIRS}\nattribute = false"), r"at least one \[\[task\]\]"),
        ((PAIRS, f"{PAIRS}\nmax_pairs = {{a = 0}}"), r"max_pairs must be at least 1, not 0"),
        ((PAIRS, f'{PAIRS}\nmax_pairs = "all"'), r"`max_pairs` must be a whole number or a table"),
        ((PAIRS, f"{PAIRS}\nsample_seed = -1"), r"sample_seed must be at least 0"),
        ((PAIRS, f'{PAIRS}\nprefix = "tokens"'), r"`prefix` must be one of .*'token'"),
        (('name = "agreement"', 'name = " "'), r"task 1\.name must not be empty"),
        (("[[task]]", f'[[task]]\nname = "agreement"\n{PAIRS}\n[[task]]'), r"two tasks are called 'agreement': each"),
        (("[[task]]", "[selection]\nnumber = 1\n[[task]]"), r"selection\.number must be at least 2, not 1"),
        (("[[task]]", '[selection]\ncheckpoints = ["a"]\n[[task]]'), r"selection\.checkpoints names one checkpoint"),
        (
            ("[[task]]", '[selection]\ncheckpoints = ["a", "a"]\n[[task]]'),
            r"selection\.checkpoints names a checkpoint twice",
        ),
        (("[[task]]", "[crosscoder]\nfeatures = 0\n[[task]]"), r"crosscoder\.features must be at least 1, not 0"),
        (("[[task]]", "[crosscoder]\nlayer = -1\n[[task]]"), r"crosscoder\.layer must be at least 0, not -1"),
        (("[[task]]", "[training]\nlr = 0\n[[task]]"), r"training\.lr must be positive"),
        (("[[task]]", "[training]\nbatchsize = 1\n[[task]]"), r"\[training\] unknown key `batchsize`; .*'batch_size'"),
        (
            ("[[task]]", "[attribution]\nthreshold = -0.1\n[[task]]"),
            r"attribution\.threshold must be at least 0, not -0\.1",
        ),
        (("[[task]]", "[attribution]\nn_columns = 0\n[[task]]"), r"attribution\.n_columns must be at least 1, not 0"),
        (
            ("[[task]]", '[attribution]\nrule = "gauss"\n[[task]]'),
            r"attribution\.rule names an unknown path rule",
        ),
        (("[[task]]", '[compute]\ndevice = "gpu"\n[[task]]'), r"\[compute\] `device` must be one of"),
        (("[[task]]", "[trainig]\n[[task]]"), r"unknown section `trainig`; the nearest is 'training'"),
        (("[text]\ndemo = true", ""), r"section \[text\] is missing"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path, change, message):
    old, new = change
    assert old in LEAST
    with pytest.raises(ValueError, match=rf"run\.toml: .*{message}"):
        load(tmp_path, LEAST.replace(old, new, 1))


SEVERAL = """
[[crosscoder]]
name = "l1"
features = 512
layer = 2
[[crosscoder]]
name = "again"
features = 512
seed = 153
[[crosscoder]]
name = "few"
seed = 124
[crosscoder.sparsity]
rule = "topk"
k = 7
[sparsity]
rule = "l1"
weight = 0.3
"""


def test_each_of_several_crosscoders_has_the_configuration_that_it_would_have_alone(tmp_path):
    (tmp_path / "run.toml").write_text(LEAST + SEVERAL)
    found = config.load(tmp_path)
    assert [each.crosscoder.name for each in found] == ["l1", "again", "few"]
    assert [each.crosscoder.features for each in found] == [512, 512, 16_384]
    assert [each.sparsity for each in found] == [L1(0.3), L1(0.3), TopK(7)]
    assert {each.crosscoder.layer for each in found} == {2}  # as the one that states it
    assert [each.start_seed for each in found] == [124, 153, 124]
    assert found[2].crosscoder.seed is None  # to state the default changes nothing
    for each in found:
        assert load(tmp_path, config.resolved(each)) == each


def test_a_single_crosscoder_may_be_written_either_way(tmp_path):
    keys = "features = 512\nseed = 7\n[crosscoder.sparsity]\nrule = 'topk'\nk = 7\n"
    assert load(tmp_path, f"{LEAST}[crosscoder]\n{keys}") == load(tmp_path, f"{LEAST}[[crosscoder]]\n{keys}")
    found = load(tmp_path, f"{LEAST}[crosscoder]\n{keys}")
    assert (found.crosscoder.features, found.start_seed, found.sparsity) == (512, 7, TopK(7))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "again"\n', "", r"\[crosscoder 2\] needs a `name`, since there are several"),
        ('name = "again"', 'name = "l1"', r"two crosscoders are called 'l1'"),
        ('name = "again"', 'name = "a/b"', r"crosscoder 2.*name 'a/b' isn't a valid folder name"),
        ('name = "again"', 'name = ".."', r"crosscoder 2.*name '\.\.' isn't a valid folder name"),
        ('name = "again"', 'name = " a"', r"crosscoder 2.*name ' a' isn't a valid folder name"),
        ('name = "again"', 'nam = "again"', r"\[crosscoder 2\] unknown key `nam`; the nearest is 'name'"),
        ("seed = 153", "seed = -1", r"crosscoder 2\.seed must be at least 0"),
        (
            "seed = 153",
            "layer = 3",
            r"crosscoder 'l1' has layer 2 and 'again' layer 3, but several",
        ),
        ("seed = 153", 'from = "theirs"', r"crosscoder 'again': `from` works only for a single crosscoder"),
        ("k = 7", "k = 99_999", r"crosscoder 'few': sparsity\.k \(99999\) exceeds the number of features \(16384\)"),
        ('"topk"', '"topq"', r"\[crosscoder 3\.sparsity\] `rule` must be one of .*; the nearest is 'topk'"),
        ("weight", "wieght", r"\[sparsity\] unknown key `wieght`; the nearest is 'weight'"),
    ],
)
def test_mistakes_in_one_of_several_are_told_with_its_name(tmp_path, old, new, message):
    assert old in SEVERAL
    (tmp_path / "run.toml").write_text(LEAST + SEVERAL.replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"run\.toml: {message}"):
        config.load(tmp_path)


def test_an_empty_list_of_crosscoders_is_refused(tmp_path):
    with pytest.raises(ValueError, match="crosscoder is an empty list"):
        load(tmp_path, f"crosscoder = []\n{LEAST}")


@pytest.mark.parametrize(
    "name",
    [*(stage.folder for stage in STAGES), annotations.FOLDER, tokenise.STATE, "training", "run.toml", "resolved.toml"],
)
def test_no_crosscoder_may_have_the_name_of_what_a_run_folder_holds(tmp_path, name):
    found = load(tmp_path, f'{LEAST}[crosscoder]\nname = "{name}"')
    with pytest.raises(ValueError, match=rf"crosscoder\.name '{name}' is reserved"):
        runs(tmp_path, [found])


def test_one_crosscoder_of_a_run_is_named_by_its_folder(tmp_path):
    (tmp_path / "run.toml").write_text(LEAST + SEVERAL)
    run_dir, (found,) = config.find(tmp_path / "again")
    assert (run_dir, found.crosscoder.name) == (tmp_path, "again")
    assert config.find(tmp_path) == (tmp_path, config.load(tmp_path))
    with pytest.raises(ValueError, match=r"has no crosscoder 'agin'; the nearest is 'again' of l1, again, few"):
        config.find(tmp_path / "agin")
    with pytest.raises(ValueError, match=r"has several crosscoders: name one \(l1, again, few\), as in .*/l1"):
        config.only(*config.find(tmp_path))
    (tmp_path / "again").mkdir()
    with pytest.raises(ValueError, match=r"again is a part of a run, whose stages are done together: name "):
        config.load(tmp_path / "again")
    (tmp_path / "run.toml").write_text(LEAST)
    with pytest.raises(ValueError, match=r"has no crosscoder 'x', and its only one has no name"):
        config.find(tmp_path / "x")


def test_a_folder_that_is_not_there_or_holds_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*rum: make one with `crosstime new demo "):
        config.load(tmp_path / "rum")
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=r"run holds no run\.toml: make one with `crosstime new demo "):
        config.load(tmp_path / "run")
    (tmp_path / "run" / "run.toml").write_text(LEAST)
    with pytest.raises(ValueError, match=r"there is no folder .*rum; did you mean .*run\?"):
        config.load(tmp_path / "rum")


@pytest.mark.parametrize(
    ("section", "rule"),
    [
        ('rule = "l1"\nweight = 1.5', L1(1.5)),
        ('rule = "topk"\nk = 7', TopK(7)),
        ('rule = "batchtopk"\nk = 7\naux_k = 3', BatchTopK(7, aux_k=3)),
        ('rule = "jumprelu"\nthreshold = 0.2', JumpReLU(threshold=0.2)),
    ],
)
def test_a_sparsity_rule_is_named_with_keys_of_its_own(tmp_path, section, rule):
    found = load(tmp_path, f"{LEAST}[sparsity]\n{section}\n")
    assert found.sparsity == rule
    assert load(tmp_path, config.resolved(found)).sparsity == rule


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ('rule = "fixed"', r'sparsity.rule "fixed" is for imported crosscoders'),
        ("weight = 1.0", r"\[sparsity\] `rule` must be one of .* it is missing"),
        ('rule = "batch-topk"', "the nearest is 'batchtopk'"),
        ("rule = 3", "it is 3"),
        ('rule = "topk"\nweight = 1.0', r"\[sparsity\] unknown key `weight`"),
        ('rule = "topk"\nk = 100000', r"k \(100000\) exceeds the number of features \(16384\)"),
    ],
)
def test_a_wrong_sparsity_rule_is_refused(tmp_path, section, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, f"{LEAST}[sparsity]\n{section}\n")
