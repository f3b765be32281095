import pytest

from crosstime.crosscoder.sparsity.rules import L1, BatchTopK, JumpReLU, TopK
from crosstime.run import config, preset

LEAST = """
[suite]
demo = true
[text]
demo = true
[[task]]
name = "agreement"
sets = ["subject-verb"]
"""


def load(tmp_path, text):
    (tmp_path / "run.toml").write_text(text)
    (found,) = config.load(tmp_path)
    return found


def test_little_has_to_be_said(tmp_path):
    found = load(tmp_path, LEAST)
    assert found.task[0].attribute
    assert found.compare.number == 3
    assert found.positions.bos


def test_every_commented_key_of_the_demo_exists(tmp_path):
    """The comments of the template promise keys: each, switched on in place of what it replaces, is taken."""
    text = preset.text("demo")
    for old, new in (
        ("\ndemo = true                    # the embedded suite", "\n#"),
        ("\ndemo = true                    # the embedded text", "\n#"),
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
        ("# jsonl = ", "jsonl = "),
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
        (("demo = true\n[text]", "[text]"), r"suite must name one of .* it names none"),
        (("demo = true\n[text]", 'demo = true\nfolder = "x"\n[text]'), r"it names suite\.demo and suite\.folder"),
        (("demo = true\n[text]", 'repo = "a/b"\n[text]'), r"suite\.repo and suite\.revisions go together"),
        (("demo = true\n[text]", 'folders = ["a", "b"]\nnames = ["a"]\n[text]'), r"1 names for 2 suite\.folders"),
        (("[text]\ndemo = true", "[text]"), r"text must name one of `demo = true`, `train` .*; it names none"),
        (("[text]\ndemo = true", '[text]\ntrain = "x"\ndemo = true'), r"text must name one of"),
        (("[text]\ndemo = true", "[text]\ndemo = true\ncontext = 1"), r"text\.context must be at least 2, not 1"),
        (("[text]\ndemo = true", '[text]\ntrain = "x"\nheldout_share = 1'), r"text\.heldout_share must lie between"),
        (("[text]\ndemo = true", '[text]\n[[text.hub]]\nrepo = "a/b"'), r"text\.hub needs text\.limit_tokens"),
        *(
            (("[text]\ndemo = true", f"[text]\nlimit_tokens = 1000\n{keys}\nhub = [{hub}]"), message)
            for keys, hub, message in (
                (
                    "",
                    '{repo = "a/b", share = 0.5}, {repo = "a/c", share = 0.4}',
                    r"the shares add up to 0\.9, not to 1",
                ),
                ("", '{repo = "a/b", share = 0.5}, {repo = "a/c"}', r"either every data set has a `share`, or none"),
                ("", '{repo = "a/b", share = 1.5}', r"the share of 'a/b' must lie between 0 and 1, not 1\.5"),
                ("", '{repo = "a/b", slpit = "x"}', r"\[text\.hub 1\] unknown key `slpit`; the nearest is 'split'"),
                ('heldout = "x"', '{repo = "a/b", heldout_split = "x"}', r"name two held-out texts"),
                ('train = "x"', '{repo = "a/b"}', r"it names text\.train and text\.hub"),
            )
        ),
        (("[text]\ndemo = true", '[text]\ntrain = "x"\npacking = "pack"'), r"`packing` must be one of \"packed\""),
        (("[text]\ndemo = true", '[text]\ntrain = "x"\nmin_tokens = 0'), r"text\.min_tokens must be at least 1"),
        (("[text]\ndemo = true", '[text]\ntrain = "x"\nshuffle_seed = -1'), r"text\.shuffle_seed must be at least 0"),
        (('sets = ["subject-verb"]', ""), r"task 'agreement' needs one of `sets`"),
        (('sets = ["subject-verb"]', 'set = ["subject-verb"]'), r"\[task 1\] unknown key `set`; the nearest is 'sets'"),
        (('sets = ["subject-verb"]', 'sets = ["x"]\nmax_pairs = 0'), r"max_pairs must be at least 1"),
        (('sets = ["subject-verb"]', 'sets = ["x"]\nattribute = false'), r"at least one \[\[task\]\]"),
        (('sets = ["subject-verb"]', 'sets = ["x"]\nmax_pairs = {a = 0}'), r"max_pairs must be at least 1, not 0"),
        (
            ('sets = ["subject-verb"]', 'sets = ["x"]\nmax_pairs = "all"'),
            r"`max_pairs` must be a whole number or a table",
        ),
        (('sets = ["subject-verb"]', 'sets = ["x"]\nsample_seed = -1'), r"sample_seed must be at least 0"),
        (('sets = ["subject-verb"]', 'sets = ["x"]\nprefix = "tokens"'), r"`prefix` must be one of .*'token'"),
        (('sets = ["subject-verb"]', 'sets = ["x"]\nblimp_sets = ["y"]'), r"blimp_sets goes with `blimp`"),
        (('sets = ["subject-verb"]', 'sets = ["x"]\nconstructions = ["y"]'), r"constructions goes with `clams`"),
        (('sets = ["subject-verb"]', 'sets = ["x"]\nlanguages = ["y"]'), r"languages goes with either `clams` or"),
        (
            ('sets = ["subject-verb"]', 'clams = "x"\nmultiblimp = "x"\nlanguages = ["y"]'),
            r"languages goes with either `clams` or `multiblimp`",
        ),
        (('sets = ["subject-verb"]', 'clams = "x"\ncounterfactual = true'), r"counterfactual goes with `blimp` or"),
        (("[[task]]", '[[task]]\nname = "agreement"\njsonl = "x"\n[[task]]'), r"two tasks are called 'agreement'"),
        (("[[task]]", "[compare]\nnumber = 1\n[[task]]"), r"compare\.number must be at least 2, not 1"),
        (("[[task]]", '[compare]\ncheckpoints = ["a"]\n[[task]]'), r"compare\.checkpoints names one checkpoint"),
        (
            ("[[task]]", '[compare]\ncheckpoints = ["a", "a"]\n[[task]]'),
            r"compare\.checkpoints names a checkpoint twice",
        ),
        (("[[task]]", "[crosscoder]\nfeatures = 0\n[[task]]"), r"crosscoder\.features must be at least 1, not 0"),
        (("[[task]]", "[crosscoder]\nlayer = -1\n[[task]]"), r"crosscoder\.layer must be at least 0, not -1"),
        (("[[task]]", "[training]\nlr = 0\n[[task]]"), r"training\.lr must be positive"),
        (("[[task]]", "[training]\nbatchsize = 1\n[[task]]"), r"\[training\] unknown key `batchsize`; .*'batch_size'"),
        (("[[task]]", "[effects]\nthreshold = -0.1\n[[task]]"), r"effects\.threshold must be at least 0, not -0\.1"),
        (("[[task]]", "[effects]\nn_columns = 0\n[[task]]"), r"effects\.n_columns must be at least 1, not 0"),
        (("[[task]]", '[effects]\nrule = "gauss"\n[[task]]'), r"`rule` must be one of \"gauss-legendre\""),
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
        ('rule = "fixed"', r'sparsity.rule "fixed" is that of imported crosscoders'),
        ("weight = 1.0", r"\[sparsity\] `rule` must be one of .* it is missing"),
        ('rule = "batch-topk"', "the nearest is 'batchtopk'"),
        ("rule = 3", "it is 3"),
        ('rule = "topk"\nweight = 1.0', r"\[sparsity\] unknown key `weight`"),
        ('rule = "topk"\nk = 100000', "a dictionary of 16384 features has not so many"),
    ],
)
def test_a_wrong_sparsity_rule_is_refused(tmp_path, section, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, f"{LEAST}[sparsity]\n{section}\n")
