"""Stop strings and an answer's beginning: the same tokens end it under every engine, log-probs stay theirs."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import lgrpo, tiny_recipe

from lgrpo_lite.batch import for_scoring
from lgrpo_lite.engines.answers import answered, stop_at
from lgrpo_lite.engines.base import SamplingParams, sampling_of
from lgrpo_lite.engines.probe import scored
from lgrpo_lite.policy.load import load_tokenizer
from lgrpo_lite.recipe.schema import Model
from lgrpo_lite.train.build import build
from lgrpo_lite.types import Prompt

SMALL = ["data.train.limit=6", "data.eval=[]", "safety.sync_proof_every=0"]


class Letters:
    """A tokenizer of one letter a token; upper case ones are special."""

    eos_ids = frozenset([ord("E")])

    def decode(self, ids, *, skip_special_tokens=False):
        return "".join(chr(i) for i in ids if not (skip_special_tokens and chr(i).isupper()))


POLICY = SimpleNamespace(tokenizer=Letters(), eos_ids=frozenset([ord("E")]))


@pytest.mark.parametrize(
    ("sampled", "stop", "shown", "ids", "text", "reason"),
    [
        ("abcde", ("cd",), True, "abcd", ">abcd", "stop"),
        ("abcde", ("cd",), False, "abcd", ">ab", "stop"),
        ("abcde", ("e", "bc"), True, "abc", ">abc", "stop"),  # whichever comes first
        ("abcde", ("x",), True, "abcde", ">abcde", "length"),
        ("abcdE", ("cd",), True, "abcd", ">abcd", "stop"),
        ("abEcd", ("cd",), True, "abE", ">ab", "stop"),  # behind an end token nothing counts
        ("abSc", ("S",), True, "abS", ">ab", "stop"),  # a special token by its name
        ("abSc", ("S",), False, "abS", ">ab", "stop"),
        ("", ("a",), True, "", ">", "length"),
        ("abc", (), True, "abc", ">abc", "length"),
    ],
)
def test_an_answer_ends_with_the_token_that_completes_a_stop_string(sampled, stop, shown, ids, text, reason):
    logp = [-float(i) for i in range(len(sampled))]
    prompt = Prompt("1", "q", (1,), "", prefill=">")
    sampling = SamplingParams(1.0, 9, stop=stop, stop_shown=shown)
    answer = answered(POLICY, prompt, ([ord(c) for c in sampled], logp), (), sampling, version=3)
    assert answer.token_ids == tuple(map(ord, ids)) and answer.logprobs == tuple(logp[: len(ids)])
    assert (answer.text, answer.finish_reason, answer.policy_version) == (text, reason, 3)


def test_a_stop_string_in_what_was_given_ends_nothing():
    sampling = SamplingParams(1.0, 9, stop=("ab",), stop_shown=False)
    prompt = Prompt("1", "q", (1,), "")
    answer = answered(POLICY, prompt, ([ord("c")], [0.0]), [ord("a"), ord("b")], sampling, version=0)
    assert (answer.text, answer.finish_reason, answer.given) == ("abc", "length", 2)


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3))
def test_where_it_stops_is_the_first_place_that_holds_one(text, stops):
    ends = [end for end in range(1, len(text) + 1) if any(stop in text[:end] for stop in stops)]
    assert stop_at(Letters(), [ord(c) for c in text], stops) == (ends[0] if ends else None)


@pytest.fixture(scope="module")
def run():
    return build(tiny_recipe(*SMALL, "rollout.stop=['=','##']"))


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_answers_are_those_without_a_stop_string_cut_where_it_comes(run, temperature):
    prompts = list(run.prompts.prompts)
    sampling = sampling_of(run.recipe, temperature)
    assert sampling.stop == ("=", "##")
    with run.engine.serving(run.policy) as sampler:
        torch.manual_seed(0)
        stopped = sampler.generate(prompts, 2, sampling)
        alone = sampler.generate(prompts, 2, SamplingParams(0.0, sampling.max_new_tokens))
    decode = run.policy.tokenizer.decode
    cut = [answer for row in stopped for answer in row if answer.token_ids[-1] not in run.policy.eos_ids]
    assert cut and all(answer.finish_reason == "stop" for answer in cut)
    for answer in cut:
        before, whole = decode(answer.token_ids[:-1]), decode(answer.token_ids)
        assert not any(stop in before for stop in sampling.stop) and any(
            stop in whole for stop in sampling.stop
        )
        assert answer.logprobs is not None and len(answer.logprobs) == len(answer.token_ids)
    if temperature == 0:
        for row, whole in zip(stopped, alone, strict=True):
            assert whole[0].token_ids[: len(row[0].token_ids)] == row[0].token_ids
            assert whole[0].logprobs[: len(row[0].logprobs)] == pytest.approx(row[0].logprobs, abs=1e-4)


def test_the_policy_gives_a_cut_answer_the_log_probs_that_it_was_sampled_with(run):
    """Rows go on beside one that has stopped; its padding is no part of it."""
    prompts = list(run.prompts.prompts)[:4]
    with run.engine.serving(run.policy) as sampler:
        torch.manual_seed(1)
        rows = sampler.generate(prompts, 2, sampling_of(run.recipe, 1.0))
    pairs = [(prompt, answer) for prompt, row in zip(prompts, rows, strict=True) for answer in row]
    batch = for_scoring(pairs)
    assert scored(run.policy, batch).tolist() == pytest.approx(batch.sampler_logp.tolist(), abs=1e-4)


def test_the_beginning_of_an_answer_is_read_by_the_model_and_by_the_rewards():
    run = build(tiny_recipe(*SMALL, "data.prefill='#### 7'", "model.max_new_tokens=1"))
    prompts = list(run.prompts.prompts)[:2]
    tokenizer = load_tokenizer(Model(id="builtin:tiny-math"))
    assert all(tokenizer.decode(prompt.token_ids).endswith("\n#### 7") for prompt in prompts)
    with run.engine.serving(run.policy) as sampler:
        answers = sampler.generate(prompts, 1, run.sampling)
        judged = run.tools(sampler)
        assert judged.encode_bare is not None
        assert "####" not in tokenizer.decode(judged.encode_bare("is it so?"))
    assert all(row[0].text.startswith("#### 7") and len(row[0].token_ids) == 1 for row in answers)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("rollout.stop=[a,'']", "an empty text would end every answer"),
        ("rollout.stop=x", "rollout.stop"),
        ("rollout.stop_shown=false", "there is no stop text to leave out"),
        ("data.prefill=''", "data.prefill"),
        ("data.few_shot=[{question: a}]", "data.few_shot.0.answer is missing"),
    ],
)
def test_settings_without_a_meaning_are_refused(setting, words, capfd):
    assert lgrpo("validate", "tiny-math", setting) == 2
    assert words in capfd.readouterr().err
