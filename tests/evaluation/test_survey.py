import dataclasses
import shutil
import weakref
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.normalizers import Lowercase
from transformers import AutoModelForCausalLM, AutoTokenizer

from crosstime import demo
from crosstime.evaluation import quality
from crosstime.evaluation.survey import (
    Survey,
    SurveyConfig,
    beats_chance,
    find_broken,
    shifts,
    similarity,
    spread,
    survey,
)
from crosstime.models.split import SplitLM
from crosstime.models.suite import Suite
from crosstime.tasks.blimp import BlimpPairs
from crosstime.tasks.task import Pair, Task
from crosstime.text.corpus import Corpus
from crosstime.text.positions import Positions
from tiny import make_tokenizer

LAYER = 2
ANSWERS = Task.from_pairs(
    "answers",
    [
        Pair(prefix="The dogs that chase the cat", right=" hide", wrong=" key"),
        Pair(prefix="Every morning the old man walks", right=" to", wrong=" that"),
        Pair(prefix="He reads", right=" the", wrong=" on"),
        Pair(prefix="This woman and a", right=" man", wrong=" cat"),
        Pair(prefix="Some dogs", right=" do", wrong=" at"),
        Pair(prefix="The keys to the cabinet", right=" are", wrong=" is"),
    ],
)
SENTENCES = Task.from_pairs(
    "sentences",
    [
        Pair(" These letters are on the table.", " This letters are on the table."),
        Pair(" He has seen many ships.", " He have seen many ships."),
        Pair(" Every man walks to the river", " Every men walks to the river"),
        Pair("The keys to the cabinet are on", "The keys to the cabinet is on"),
    ],
)
TEXT = ["The old man walks to the river and reads a book. " * 5, "They have sailed across the sea. " * 8]


@pytest.fixture(scope="module")
def suite(tiny_suite):
    return Suite.from_folder(tiny_suite)


@pytest.fixture(scope="module")
def heldout(suite):
    return Corpus.from_strings(TEXT, suite.tokenizer, context=24)


@pytest.fixture(scope="module")
def surveyed(suite, heldout):
    return survey(suite, [ANSWERS, SENTENCES], heldout, layer=LAYER)


@pytest.fixture(scope="module")
def plain_models(tiny_suite, suite):
    return [AutoModelForCausalLM.from_pretrained(tiny_suite / name, dtype=torch.float32) for name in suite.names]


@torch.no_grad()
def log_likelihood(model, ids):
    """Sum of the log-probabilities of all tokens after the first, one text at a time."""
    logp = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    return logp.gather(1, torch.tensor(ids[1:])[:, None]).sum().item()


def test_accuracies_are_those_of_plain_transformers(surveyed, suite, plain_models):
    for c, model in enumerate(plain_models):
        for t, task in enumerate((ANSWERS, SENTENCES)):
            encode = lambda text: [0, *suite.tokenizer(text)["input_ids"]]  # noqa: E731
            margins = [
                log_likelihood(model, encode(good)) - log_likelihood(model, encode(bad))
                for good, bad in (pair.sentences for pair in task.pairs)
            ]
            assert surveyed.sentence_accuracy[c, t] == np.mean(np.array(margins) > 0)
        prompts = ANSWERS.prompts(suite.tokenizer)
        differences = []
        for prompt, right, wrong in zip(prompts.tokens, prompts.right, prompts.wrong, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([prompt])).logits[0, -1]
            differences.append((logits[right] - logits[wrong]).item())
        assert surveyed.n_prompts == [len(differences), 0]
        assert surveyed.token_accuracy[c, 0] == np.mean(np.array(differences) > 0)
        assert surveyed.logit_difference[c, 0] == pytest.approx(np.mean(differences), abs=1e-4)


def test_a_task_without_prompts_has_no_token_accuracy(surveyed):
    assert np.isnan(surveyed.token_accuracy[:, 1]).all()
    assert np.isnan(surveyed.logit_difference[:, 1]).all()


def test_perplexity_is_that_of_plain_transformers(surveyed, heldout, plain_models):
    blocks = torch.from_numpy(heldout.blocks.astype(np.int64))
    for c, model in enumerate(plain_models):
        with torch.no_grad():
            logits = model(blocks).logits[:, 1:-1]
        nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), blocks[:, 2:].flatten())
        assert surveyed.perplexity[c] == pytest.approx(nats.exp().item(), rel=1e-4)


def test_similarity_is_the_mean_over_the_tokens_of_the_good_sentences(surveyed, suite, plain_models):
    good = [good[:-1] for task in (ANSWERS, SENTENCES) for good, _ in task.sentences(suite.tokenizer)]
    # A text that is the beginning of another does not count again.
    texts = [text for text in good if not any(other[: len(text)] == text for other in good if other is not text)]
    assert len(texts) == len(good) - 1
    vectors = []
    for model in plain_models:
        with torch.no_grad():
            states = [model(torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER + 1] for ids in texts]
        vectors.append(torch.cat([state[0, 1:] for state in states]).double())
    for a, x in enumerate(vectors):
        for b, y in enumerate(vectors):
            assert surveyed.cosine[a, b] == pytest.approx(torch.cosine_similarity(x, y).mean().item(), abs=1e-3)
            centred = (v - v.mean(-1, keepdim=True) for v in (x, y))
            assert surveyed.pearson[a, b] == pytest.approx(torch.cosine_similarity(*centred).mean().item(), abs=1e-3)


def assert_same(one: Survey, other: Survey):
    for field in dataclasses.fields(Survey):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        else:
            assert a == b


@pytest.mark.parametrize("batch_tokens", [16, 100_000])
def test_batch_size_changes_nothing(surveyed, suite, heldout, batch_tokens):
    config = SurveyConfig(blocks=1000, batch_tokens=batch_tokens)
    assert_same(surveyed, survey(suite, [ANSWERS, SENTENCES], heldout, config, layer=LAYER))


def test_max_pairs_and_blocks_take_the_first(suite, heldout):
    found = survey(suite, [ANSWERS], heldout, SurveyConfig(max_pairs=2, blocks=1), layer=LAYER)
    assert_same(found, survey(suite, [ANSWERS.take(2)], heldout.take(1), layer=LAYER))
    assert found.n_pairs == [2]


@pytest.mark.parametrize("sequences", [1, 3])
def test_logits_are_made_a_few_sequences_at_a_time(surveyed, suite, heldout, monkeypatch, sequences):
    limit = sequences * heldout.context * suite.vocab_size
    monkeypatch.setattr(quality, "MAX_LOGITS", limit)
    made = []
    upper = SplitLM.upper

    def spied(self, residual, *args, **kwargs):
        made.append(len(residual) * residual.shape[1] * suite.vocab_size)
        return upper(self, residual, *args, **kwargs)

    monkeypatch.setattr(SplitLM, "upper", spied)
    assert_same(surveyed, survey(suite, [ANSWERS, SENTENCES], heldout, layer=LAYER))
    assert max(made) <= limit


def test_one_checkpoint_at_a_time_is_in_memory(suite, heldout, monkeypatch):
    loaded = []
    load = Suite.load

    def watched(self, *args, **kwargs):
        assert all(model() is None for model in loaded)
        lm = load(self, *args, **kwargs)
        loaded.append(weakref.ref(next(lm._upper.parameters())))
        return lm

    monkeypatch.setattr(Suite, "load", watched)
    survey(suite, [ANSWERS], heldout, layer=LAYER)
    assert len(loaded) == len(suite)


def test_order_of_pairs_changes_nothing(surveyed, suite, heldout):
    turned = [dataclasses.replace(task, pairs=task.pairs[::-1]) for task in (ANSWERS, SENTENCES)]
    assert_same(surveyed, survey(suite, turned, heldout, layer=LAYER))


def test_order_of_tasks_permutes_the_columns(surveyed, suite, heldout):
    turned = survey(suite, [SENTENCES, ANSWERS], heldout, layer=LAYER)
    assert turned.tasks == ["sentences", "answers"]
    np.testing.assert_array_equal(turned.sentence_accuracy, surveyed.sentence_accuracy[:, ::-1])
    np.testing.assert_allclose(turned.cosine, surveyed.cosine, atol=1e-6)


def test_swapping_good_and_bad_mirrors_accuracy(surveyed, suite, heldout):
    pairs = [Pair(p.bad, p.good) for p in SENTENCES.pairs]
    mirrored = survey(suite, [Task.from_pairs("sentences", pairs)], heldout, layer=LAYER)
    np.testing.assert_allclose(mirrored.sentence_accuracy[:, 0], 1 - surveyed.sentence_accuracy[:, 1])


def test_a_tie_is_wrong(suite, heldout):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    deaf_to_case = dataclasses.replace(suite, tokenizer=tokenizer)
    task = Task.from_pairs("case", [Pair("the DOG", "the dog")])
    assert (survey(deaf_to_case, [task], heldout, layer=LAYER).sentence_accuracy == 0).all()


def test_identical_checkpoints_are_alike(tiny_suite, tmp_path, heldout):
    for name in ("step1", "step2"):
        shutil.copytree(tiny_suite / "step10", tmp_path / name)
    twins = Suite.from_folder(tmp_path, allow_duplicates=True)
    result = survey(twins, [ANSWERS], heldout, layer=LAYER)
    np.testing.assert_allclose(result.cosine, 1, atol=1e-5)
    np.testing.assert_allclose(result.pearson, 1, atol=1e-5)
    assert result.perplexity[0] == result.perplexity[1]
    assert result.propose(2).checkpoints == ["step1", "step2"]


def test_similarity_by_hand():
    x = torch.tensor([[[1.0, 0, 0], [3, 4, 0]], [[0, 2, 0], [3, 4, 0]]])
    cosine, pearson = similarity(x)
    assert cosine == pytest.approx(np.array([[1, 0.5], [0.5, 1]]))
    assert pearson == pytest.approx(np.array([[1, 0.25], [0.25, 1]]))


def test_without_bos_the_first_token_is_not_predicted(suite, plain_models):
    positions = Positions(bos=False)
    heldout = Corpus.from_strings(TEXT, suite.tokenizer, context=24, positions=positions)
    result = survey(suite, [SENTENCES], heldout, layer=LAYER, positions=positions)
    for c, model in enumerate(plain_models):
        margins = [
            log_likelihood(model, g) - log_likelihood(model, b)
            for g, b in SENTENCES.sentences(suite.tokenizer, positions)
        ]
        assert result.sentence_accuracy[c, 0] == np.mean(np.array(margins) > 0)


def test_a_survey_of_one_checkpoint_works(suite, heldout):
    result = survey(suite.select(["step10"]), [ANSWERS], heldout, layer=LAYER)
    assert result.cosine == pytest.approx(np.ones((1, 1)))
    with pytest.raises(ValueError, match="cannot choose 2"):
        result.propose(2)


def test_save_and_load(surveyed, tmp_path):
    odd = dataclasses.replace(surveyed, tokens=[None, 5, 6], perplexity=np.array([30.0, np.inf, 20.0]))
    odd.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"accuracy.parquet", "similarity.parquet", "survey.json"}
    again = Survey.load(tmp_path)
    for field in dataclasses.fields(Survey):
        np.testing.assert_array_equal(getattr(odd, field.name), getattr(again, field.name))
    assert again.broken == odd.broken == {"step10": "its perplexity on held-out text isn't finite"}


def test_nan_activations_are_named(tiny_suite, tmp_path, heldout):
    shutil.copytree(tiny_suite, tmp_path / "suite")
    model = AutoModelForCausalLM.from_pretrained(tiny_suite / "step10", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_suite / "step10")
    key = tokenizer(" dog")["input_ids"][-1]
    model.get_input_embeddings().weight.data[key] = float("nan")
    model.save_pretrained(tmp_path / "suite" / "step10")
    broken = Suite.from_folder(tmp_path / "suite")
    with pytest.raises(ValueError, match=r"checkpoint step10: .* not finite at token .*, position \d+ of ") as error:
        survey(broken, [ANSWERS], heldout, layer=LAYER)
    assert repr(tokenizer.decode([key])) in str(error.value)


def test_bad_requests_are_refused(suite, heldout, surveyed):
    with pytest.raises(ValueError, match="at least one task"):
        survey(suite, [], heldout, layer=LAYER)
    with pytest.raises(ValueError, match="two tasks are named answers"):
        survey(suite, [ANSWERS, ANSWERS], heldout, layer=LAYER)
    with pytest.raises(ValueError, match="at least 2 checkpoints"):
        surveyed.propose(1)
    with pytest.raises(ValueError, match="cannot choose 4 checkpoints: the suite has 3"):
        surveyed.propose(4)


def learning(n_prompts=400, accuracy=(0.5, 0.5, 0.7, 0.9, 0.92), cosine=None) -> Survey:
    """A survey of a run that learns one task between its second and fourth checkpoints."""
    n = len(accuracy)
    column = np.array(accuracy)[:, None]
    if cosine is None:
        index = np.arange(n)
        cosine = 0.8 ** np.abs(index[:, None] - index[None]).astype(float)
        cosine[0, 1:] = cosine[1:, 0] = 0.0  # the first is random: unlike all others
    return Survey(
        checkpoints=[f"step{10**i}" for i in range(n)],
        tokens=[10 ** (i + 5) for i in range(n)],
        tasks=["agreement"],
        n_pairs=[n_prompts],
        n_prompts=[n_prompts],
        sentence_accuracy=column,
        token_accuracy=column,
        logit_difference=column - 0.5,
        perplexity=np.linspace(900, 20, n),
        cosine=cosine,
        pearson=cosine,
        layer=3,
    )


def test_a_proposal_leaves_out_what_has_learnt_nothing():
    proposal = learning().propose(2)
    assert proposal.checkpoints == ["step100", "step10000"]
    assert proposal.excluded == dict.fromkeys(["step1", "step10"], "it is at chance on every task")
    first, second = proposal.reasons
    assert first.startswith("step100 (10M tokens) is the starting point: ")
    assert "since step100, accuracy changes by .22 on average over tasks, most on agreement (.70 to .92)" in second
    assert "block 3 have a cosine of .64." in second


def test_where_little_is_learnt_the_latest_fill_up():
    assert learning().propose(4).checkpoints == ["step10", "step100", "step1000", "step10000"]
    assert learning(n_prompts=3).propose(2).checkpoints == ["step1000", "step10000"]


def test_a_proposal_leaves_out_broken_checkpoints():
    result = learning(accuracy=(0.5, 0.7, 0.1, 0.8, 0.9))
    result = dataclasses.replace(result, perplexity=np.array([900.0, 30, 1e6, 25, 20]))
    proposal = result.propose(3)
    assert proposal.checkpoints == ["step10", "step1000", "step10000"]
    assert "1e+06, compared with 30 before and 20 after" in proposal.excluded["step100"]
    everything = result.propose(5)
    assert everything.checkpoints == result.checkpoints
    assert everything.reasons[2].endswith(
        "(Chosen because no better candidate was left: its perplexity on held-out text is 1e+06, compared with 30 "
        "before and 20 after.)"
    )
    assert everything.excluded == {}


def test_the_bundled_checkpoints_give_the_published_accuracies():
    """First 200 pairs of each set, against the table of the suite's card (first 400 pairs)."""
    published = {
        "regular_plural_subject_verb_agreement_1": (0.65, 0.80),
        "distractor_agreement_relational_noun": (0.43, 0.42),
        "determiner_noun_agreement_1": (0.62, 0.96),
        "determiner_noun_agreement_with_adjective_1": (0.55, 0.93),
    }
    suite = Suite.from_folder(demo.SUITE, ["step256", "step3786"])
    tasks = [BlimpPairs(name).load().take(200) for name in published]
    heldout = Corpus.from_text(demo.HELDOUT_TEXT, suite.tokenizer, context=128, limit_tokens=64 * 128)
    result = survey(suite, tasks, heldout, layer=3)
    assert result.tokens == [2_097_152, 31_014_912]
    assert result.sentence_accuracy[1] == pytest.approx([row[1] for row in published.values()], abs=0.05)
    assert result.sentence_accuracy[0] == pytest.approx([row[0] for row in published.values()], abs=0.06)
    # The log of pretraining gives 4.84 and 3.76 nats.
    assert np.log(result.perplexity) == pytest.approx([4.8393, 3.7635], abs=0.15)
    assert result.broken == {}


BLOOM_STEPS = ("1000", "10000", "100000", "200000", "300000", "400000", "500000", "600000")
BLOOM_PERPLEXITY = np.array([299.04, 53.00, 34.28, 32.37, 30.91, 338341.5, 28.41, 26.76])


def alike(n):
    """Checkpoints that drift apart slowly."""
    index = np.arange(n)
    return 0.95 ** np.abs(index[:, None] - index[None]).astype(float)


def test_the_broken_bloom_checkpoint_is_flagged_and_no_other():
    broken = find_broken(BLOOM_STEPS, BLOOM_PERPLEXITY, alike(8))
    assert list(broken) == ["400000"]
    assert broken["400000"] == "its perplexity on held-out text is 338342, compared with 30.91 before and 26.76 after"


@pytest.mark.parametrize(
    ("perplexity", "expected"),
    [
        ([90, 40, 30, 20], []),
        ([90, 40, 900, 800, 20], [2, 3]),
        ([90, 40, 30, 70], [3]),
        ([90, 40, 30, 50], []),
        ([90, 40, np.inf, 20], [2]),
        ([np.inf, 40, 30], [0]),
        ([30, 31, 29], []),
        ([50], []),
    ],
    ids=["falls", "two in a row", "the last", "a bump", "infinite", "infinite at first", "flat", "alone"],
)
def test_perplexity_out_of_line(perplexity, expected):
    names = [str(i) for i in range(len(perplexity))]
    found = find_broken(names, np.array(perplexity, dtype=float), alike(len(names)))
    assert list(found) == [str(i) for i in expected]


def test_a_representation_unlike_both_neighbours_is_flagged():
    cosine = alike(5)
    cosine[2, :] = cosine[:, 2] = 0.3
    cosine[2, 2] = 1
    broken = find_broken("abcde", np.linspace(50, 20, 5), cosine)
    assert list(broken) == ["c"]
    assert "unlike those of b (cosine 0.30) and d (0.30), which are like each other (0.90)" in broken["c"]


def test_a_phase_transition_is_not_broken():
    cosine = alike(6)
    cosine[:3, 3:] *= 0.2
    cosine[3:, :3] *= 0.2
    assert find_broken("abcdef", np.array([500, 400, 300, 60, 40, 30.0]), cosine) == {}


def test_chance_depends_on_the_number_of_pairs_and_counts_both_sides():
    accuracy = np.array([[0.6, 0.5], [0.4, 0.5], [0.55, 0.5]])
    assert beats_chance(accuracy, np.array([400, 400])).tolist() == [[True, False], [True, False], [False, False]]
    assert not beats_chance(accuracy, np.array([40, 40])).any()


def test_guessing_rarely_beats_chance():
    rng = np.random.default_rng(0)
    n = np.full(20, 200)
    accuracy = rng.binomial(n, 0.5, size=(2000, 20)) / n
    assert beats_chance(accuracy, n).any(axis=1).mean() < 0.02


def test_shift_is_the_sum_of_both_parts_each_scaled_by_its_largest():
    accuracy = np.array([[0.5, 0.5], [0.6, 0.5], [0.6, 0.9]])
    cosine = np.array([[1, 0.9, 0.6], [0.9, 1, 0.8], [0.6, 0.8, 1]])
    assert shifts(accuracy, cosine) == pytest.approx(np.array([[0, 0.2 + 0.25, 2], [0.45, 0, 0.8 + 0.5], [2, 1.3, 0]]))
    assert (shifts(np.full((3, 2), 0.7), np.ones((3, 3))) == 0).all()


@given(st.integers(2, 7).flatmap(lambda n: st.tuples(st.integers(2, n), st.integers(0, 10**6), st.just(n))))
def test_spread_is_the_best_of_all_choices(case):
    k, seed, n = case
    # Few different values, so that there are ties to be broken by the sum.
    shift = np.random.default_rng(seed).integers(1, 5, size=(n, n)).astype(float)

    def steps(choice):
        return [shift[a, b] for a, b in pairwise(choice)]

    best = max((min(steps(choice)), sum(steps(choice))) for choice in combinations(range(n), k))
    chosen = spread(shift, k)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == k
    assert (min(steps(chosen)), sum(steps(chosen))) == best
