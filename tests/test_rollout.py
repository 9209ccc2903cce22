"""Rollout bricks on a scripted engine: who is asked what, what is trained under
which prompt, what is remembered.
"""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import asked, ids_of, scripted_tools, text_of, tiny_recipe

from lgrpo_lite.checks.rules import answers_left
from lgrpo_lite.errors import DataError, VerificationError
from lgrpo_lite.objective.objective import Objective
from lgrpo_lite.recipe.algorithm import Algorithm, BestDraft, Guide, ProbeValues, RefineBest, ValueCache
from lgrpo_lite.recipe.reward import Reward
from lgrpo_lite.rollout.drafts import best_draft, filled, refine_best
from lgrpo_lite.rollout.guide import GuideLength, guided_answers
from lgrpo_lite.rollout.plan import RolloutPlan
from lgrpo_lite.rollout.values import ValueStore, probe_values, step_spans, v_star
from lgrpo_lite.types import Criterion, Prompt

PLAIN, HINT = "{draft}|{question}", "{question}/{best}/{failed}"


def right_on(*numbers):
    """Answers to a question are right at these positions."""
    return lambda question, begun, number: "#### 1" if number in numbers else "#### 2"


# ------------------------------------------------------------------------------------------- drafts


@pytest.mark.parametrize(
    ("drafts", "n", "left", "when", "script", "expected"),
    [
        (None, 8, 4, "always", right_on(2), "#### 1|a"),  # the right one of four
        (2, 8, 6, "always", right_on(5), "#### 2|a"),  # none of two is right: the first of equals
        (None, 8, 4, "wrong", right_on(2), "a"),  # a right draft is not shown
        (None, 8, 4, "wrong", right_on(), "#### 2|a"),
    ],
)
def test_the_best_draft_joins_the_prompt(drafts, n, left, when, script, expected):
    tools = scripted_tools(script)
    settings = BestDraft(drafts=drafts, when=when)
    prompts, rest = best_draft([asked("a")], n, settings, PLAIN, tools)
    assert rest == left
    assert text_of(prompts[0].token_ids) == expected
    assert prompts[0].text == "a" and prompts[0].id == "a"  # people and rewards see the question as it was
    assert tools.count["answers"] == n - left


def test_a_long_draft_loses_its_beginning():
    tools = scripted_tools(lambda *_: "12345#### 1")
    prompts, _ = best_draft([asked("a")], 4, BestDraft(max_tokens=8), PLAIN, tools)
    assert text_of(prompts[0].token_ids) == "5#### 1|a"  # the end of sequence is one of the 8


def test_braces_in_an_answer_are_not_templates():
    assert filled("{question}: {draft}", question="{draft}?", draft="{question}") == "{draft}?: {question}"


def test_a_draft_that_is_copied_is_trained_under_the_longer_prompt():
    recipe = tiny_recipe("algorithm.use=igrpo", "rollout.group_size=4", f"data.draft_template='{PLAIN}'")
    tools = scripted_tools(lambda q, begun, i: "#### 1" if "|" in q and i else "#### 2")
    groups = RolloutPlan(recipe)([asked("a")], tools)
    assert [text_of(g.prompt.token_ids) for g in groups] == ["#### 2|a"]
    batch = Objective(recipe.algorithm, max_new_tokens=64).batch(groups)
    assert text_of(batch.input_ids[: batch.at[0] + 1].tolist()) == "#### 2|a"
    assert not batch.sampler_logp.isnan().any()  # sampled under the prompt it is trained under


# ------------------------------------------------------------------------------------------- guidance


def test_guided_answers_begin_with_the_solution():
    tools = scripted_tools(lambda q, begun, i: "#### 1")
    prompt = asked("a", solution_ids=ids_of("1+0=1;#### 1"))
    rows = guided_answers([prompt, prompt], 4, 6, Guide(share=0.5), tools)
    assert [c.given for c in rows[0]] == [6, 6, 0, 0]
    assert rows[1][0].text == "1+0=1;#### 1" and len(rows[1][0].logprobs) == len(rows[1][0].token_ids) - 6
    assert tools.count["tokens"] == 8 * len("#### 1.")  # what was given was not sampled


@pytest.mark.parametrize(
    ("length", "share", "limit", "shown"),
    [(3, 1.0, 64, 3), (99, 0.5, 64, 6), (99, 1.0, 5, 4), (99, 1.0, 64, 12)],
)
def test_guidance_is_bounded(length, share, limit, shown):
    tools = scripted_tools(lambda *_: "x", limit=limit)
    rows = guided_answers(
        [asked("a", solution_ids=ids_of("1+0=1;#### 1"))], 1, length, Guide(share=1, max_share=share), tools
    )
    assert rows[0][0].given == shown


def test_a_prompt_without_a_solution_is_named():
    with pytest.raises(DataError, match="no solution") as error:
        guided_answers([asked("a")], 2, 6, Guide(), scripted_tools(right_on(0)))
    assert error.value.where == "prompt a"


@given(
    st.lists(st.floats(0, 1), max_size=30),
    st.sampled_from(["every", "released"]),
    st.sampled_from([None, 2.0]),
)
def test_the_controller_stays_in_bounds(rewards, schedule, factor):
    controller = GuideLength(Guide(init=100, max=200, schedule=schedule, max_factor=factor))
    for reward in rewards:
        before = controller.length
        controller.observe(reward)
        assert 1 <= controller.length <= 200
        assert factor is None or before / factor - 1 <= controller.length <= before * factor
    again = GuideLength(Guide(init=100, max=200))
    again.load_state_dict(controller.state_dict())
    assert again.state_dict() == controller.state_dict()


def test_separate_baselines_compare_like_with_like():
    prompt = asked("a", solution_ids=ids_of("1+0=1;"))
    script = lambda q, begun, i: "#### 1" if begun else "#### 2"  # noqa: E731
    for baseline, expected in (("separate", [0.0] * 4), ("shared", [0.5, 0.5, -0.5, -0.5])):
        tools = scripted_tools(script)
        parts = Algorithm(advantage="mean_only", guide=Guide(share=0.5, baseline=baseline))
        groups = tools.score([prompt], guided_answers([prompt], 4, 3, parts.guide, tools))
        assert Objective(parts, max_new_tokens=64).credit(groups)[0] == [expected]


# ------------------------------------------------------------------------------------------- refinement


def refined(script, **settings):
    tools = scripted_tools(script)
    groups = tools.score([asked("a")], tools.generate([asked("a")], 3))
    return refine_best(groups, RefineBest(**settings), HINT, tools)[0], tools


def test_the_best_answer_is_refined_and_trained_without_the_hint():
    group, tools = refined(lambda q, begun, i: "#### 1" if "/" in q else f"#### {i + 2}")
    assert tools.sampler.asked[-1][0] == "a/#### 2/- The final answer is not correct."
    assert [r.off for r in group.rollouts] == [False, False, False, True]
    last = group.rollouts[-1]
    assert last.prompt.text == "a" and last.completion.logprobs is None and last.reward == 1
    parts = Algorithm(rollout_correction={"cap": 2.0})
    batch = Objective(parts, max_new_tokens=64).batch([group])
    assert batch.sampler_logp[batch.off[batch.seq]].isnan().all()
    assert not batch.sampler_logp[~batch.off[batch.seq]].isnan().any()
    logp = batch.advantage.new_full((batch.num_tokens,), -2.0).requires_grad_()
    loss, sums = Objective(parts, max_new_tokens=64)(logp, batch)
    loss.backward()
    assert logp.grad.isfinite().all() and sums["sampled"] == batch.num_tokens - len(last.completion.token_ids)


def test_a_perfect_best_answer_needs_no_refinement():
    group, tools = refined(right_on(1))
    assert [r.off for r in group.rollouts] == [False] * 4 and all(
        r.completion.logprobs for r in group.rollouts
    )
    assert tools.sampler.asked[-1] == ("a", "", 1)
    group, _ = refined(right_on(1), when="always")
    assert group.rollouts[-1].off


def test_failed_criteria_are_told_even_where_the_reward_is_one():
    criteria = (
        Criterion("states 5", "factual", 1.0, "numeric", "5"),
        Criterion("names the unit", "process", 1.0, "unit", "km"),
    )
    tools = scripted_tools(lambda q, begun, i: "it is 5" if i == 0 else "no idea", Reward(use="rubric"))
    prompt = asked("a", rubric=criteria)
    groups = tools.score([prompt], tools.generate([prompt], 2))
    assert groups[0].rewards == [1.0, 0.0]
    group = refine_best(groups, RefineBest(), HINT, tools)[0]
    assert tools.sampler.asked[-1][0] == "a/it is 5/- names the unit"
    assert group.rollouts[-1].off


# ------------------------------------------------------------------------------------------- values of steps


@pytest.mark.parametrize(
    ("pieces", "delimiter", "spans"),
    [
        (["a", "b", "\n", "c", ""], "\n", ((0, 3), (3, 5))),
        (
            ["a\n", "\n", "b", "\n", ""],
            "\n",
            ((0, 2), (2, 5)),
        ),  # blank lines and the end of sequence join the step before
        (["a", ".", " ", "b"], ". ", ((0, 3), (3, 4))),  # a delimiter over two tokens
        (["a", "b"], "\n", ((0, 2),)),
        (["a\nb", "c"], "\n", ((0, 1), (1, 2))),
        ([""], "\n", ((0, 1),)),
        ([], "\n", ()),
    ],
)
def test_steps_are_ranges_of_tokens(pieces, delimiter, spans):
    assert step_spans(range(len(pieces)), lambda ids: "".join(pieces[i] for i in ids), delimiter) == spans


@given(st.lists(st.sampled_from(["a", "\n", " ", "b\n", ""]), max_size=12))
def test_steps_cover_every_token_once(pieces):
    spans = step_spans(range(len(pieces)), lambda ids: "".join(pieces[i] for i in ids), "\n")
    assert [t for begin, end in spans for t in range(begin, end)] == list(range(len(pieces)))


def lines(*answers):
    """Fresh answers in turn; a continuation of "good" is right, of anything else wrong."""
    return lambda q, begun, i: answers[i] if not begun else ("#### 1" if "good" in begun else "#### 2")


def probed(answers, **settings):
    tools = scripted_tools(lines(*answers))
    groups = tools.score([asked("a")], tools.generate([asked("a")], len(answers)))
    before = len(tools.sampler.asked)
    group = probe_values(groups, ProbeValues(k=3, **settings), tools)[0]
    return group, tools.sampler.asked[before:]


def test_identical_states_are_asked_once():
    group, questions = probed(["good\n#### 1", "good\n#### 2", "bad\n#### 2"])
    assert [(begun, n) for _, begun, n in questions] == [("", 3), ("good\n", 3), ("bad\n", 3)]
    first = group.rollouts[0].values
    assert first[1] == 1.0 and group.rollouts[2].values[1] == 0.0
    parts = Algorithm(advantage="next_value", probe_values=ProbeValues(whiten="none"))
    credit = Objective(parts, max_new_tokens=64).credit([group])[0][0]
    # good step, then a wrong end
    assert credit[1][0] == pytest.approx(1 - first[0]) and credit[1][-1] == -1.0
    for row, r in zip(credit, group.rollouts, strict=True):  # telescopes to R - V(prompt)
        assert sum(row[begin] for begin, _ in r.spans) == pytest.approx(r.reward - first[0])


def test_states_can_be_capped_and_the_first_one_is_free():
    group, questions = probed(["good\ngood\n#### 1", "bad\n#### 2"], max_states=2, first="group_mean")
    assert [begun for _, begun, _ in questions] == ["good\n", "bad\n"]
    assert group.rollouts[0].values[0] == 0.5
    assert len(group.rollouts[0].values) == 2 and len(group.rollouts[0].spans) == 3


def test_groups_of_equal_rewards_need_no_probes():
    group, questions = probed(["good\n#### 1", "good\n#### 1"], only="mixed")
    assert not questions and group.rollouts[0].values is None


def test_a_continuation_that_is_cut_counts_zero():
    tools = scripted_tools(lambda q, begun, i: "good\n#### 1" if not begun else "#### 1" + "x" * 99, limit=20)
    groups = tools.score([asked("a")], tools.generate([asked("a")], 2))
    group = probe_values(groups, ProbeValues(k=2), tools)[0]
    assert group.rollouts[0].values[1] == 0.0


# ------------------------------------------------------------------------------------------- values of prompts


def prepared(path, script, prompts, store=None, stop=lambda: False):
    store = store or ValueStore(ValueCache(n=4, beta=0.5), {"model": "m"}, 0)
    tools = scripted_tools(script)
    seen = []
    done = store.prepare(prompts, tools, path, seen.append, stop)
    return store, tools, seen, done


def test_the_pre_pass_is_asked_once_and_resumes(tmp_path):
    prompts = [asked(f"q{i}") for i in range(130)]
    path = tmp_path / "values.jsonl"
    calls = iter([False, False, True])
    _, tools, seen, done = prepared(path, right_on(0), prompts, stop=lambda: next(calls))
    assert not done and seen == [0, 64] and len(path.read_text().splitlines()) == 128
    with path.open("a") as file:
        file.write('{"key": "cut short by a ki')
    store, tools, seen, done = prepared(path, right_on(0), prompts)
    assert done and seen == [128] and len(tools.sampler.asked) == 2
    assert store.value(prompts[0]) == v_star([1, 0, 0, 0], 0.5) == store.value(prompts[129])
    assert [json.loads(line)["id"] for line in path.read_text().splitlines() if line.endswith("}")] == [
        p.id for p in prompts
    ]
    again, tools, seen, _ = prepared(path, right_on(0), prompts)
    assert not tools.sampler.asked and again.rewards == store.rewards
    other = ValueStore(ValueCache(n=4), {"model": "another"}, 0)
    assert other.key(prompts[0]) != store.key(prompts[0])


def test_prompts_the_reference_never_solves_can_be_left_out():
    prompts = [asked("easy"), asked("hard")]
    for drop, kept in ((True, [True, False]), (False, [True, True])):
        store = ValueStore(ValueCache(n=2, drop_unsolved=drop), {}, 0)
        store.rewards = {store.key(prompts[0]): [0.0, 1.0], store.key(prompts[1]): [0.0, 0.0]}
        assert [store.teaches(p) for p in prompts] == kept


def test_a_prompt_the_pre_pass_did_not_see_is_asked_for_as_it_comes():
    recipe = tiny_recipe("algorithm.use=a_star_po", "algorithm.value_cache.n=4", "rollout.group_size=2")
    plan = RolloutPlan(recipe)
    tools = scripted_tools(lambda q, begun, i: "#### 1" if i == 0 else "#### 2")
    groups = plan([asked("new"), asked("other")], tools)
    assert [g.value for g in groups] == [v_star([1, 0, 0, 0], 0.5)] * 2 and tools.sampler.calls == 2
    assert plan([asked("new")], tools)[0].value == groups[0].value and tools.sampler.calls == 3
    fresh = RolloutPlan(recipe)
    fresh.load_state_dict(plan.state_dict())
    assert fresh.values.rewards == plan.values.rewards


def test_a_prompt_without_any_reward_is_passed_over(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def score(completion, prompt):\n    if prompt == 'bad': raise TimeoutError\n    return 1.0\n"
    )
    recipe = tiny_recipe("algorithm.use=a_star_po", "rollout.group_size=1")
    tools = scripted_tools(right_on(0), Reward(use=f"{tmp_path}/mine.py:score"))
    assert [g.prompt.id for g in RolloutPlan(recipe)([asked("bad"), asked("good")], tools)] == ["good"]


def test_probes_leave_groups_they_did_not_see_at_zero():
    """whiten=standard subtracts a mean: not from answers that were not probed, nor for
    guidance that carries no loss.
    """
    tools = scripted_tools(
        lambda q, begun, i: ("good\n#### 1", "bad\n#### 2")[i % 2] if q == "mixed" and not begun else "#### 1"
    )
    prompts = [asked("mixed"), asked("same")]
    groups = tools.score(prompts, tools.generate(prompts, 2))
    settings = ProbeValues(k=2, only="mixed")
    parts = Algorithm(advantage="next_value", probe_values=settings)
    credit = Objective(parts, max_new_tokens=64).credit(probe_values(groups, settings, tools))[0]
    assert any(a for row in credit[0] for a in row) and not any(a for row in credit[1] for a in row)


@pytest.mark.parametrize(
    ("use", "extra", "groups", "wanted"),
    [
        ("igrpo", ["algorithm.select={keep: 0.5}"], 0, 4),
        (
            "igrpo",
            ["algorithm.select={keep: 0.5}"],
            8,
            0,
        ),  # 8 groups of 4 keep 2 each: 4 prompts of 4 answers
        ("a_star_po", ["rollout.group_size=1", "algorithm.select={keep: 1.0}"], 4, 0),
        ("cppo", ["rollout.group_size=8", "algorithm.select={keep: 0.25}"], 4, 12),
        ("cppo", ["rollout.group_size=8", "algorithm.select={keep: 0.25, refill: false}"], 4, 0),
        ("dapo", [], 3, 1),
    ],
)
def test_how_many_prompts_are_still_wanted(use, extra, groups, wanted):
    recipe = tiny_recipe(f"algorithm.use={use}", "rollout.group_size=8", *extra)
    objective, n = Objective(recipe.algorithm, max_new_tokens=64, hidden=4), answers_left(recipe)
    tools = scripted_tools(right_on(0))
    have = tools.score([asked("a")] * groups, tools.generate([asked("a")] * groups, n))
    assert objective.wanted(have, 4, n) == wanted


@given(st.lists(st.floats(-1000, 1000), min_size=1, max_size=8), st.floats(0.01, 10))
def test_v_star_lies_between_mean_and_maximum(rewards, beta):
    assert min(rewards) - 1e-6 <= v_star(rewards, 0) <= v_star(rewards, beta) + 1e-6 <= max(rewards) + 2e-6


@pytest.mark.parametrize(("version", "refused"), [(None, False), (0, False), (3, True)])
def test_answers_of_another_version_are_refused(version, refused):
    """The scripted engine samples from version 0."""
    tools = replace(scripted_tools(lambda question, begun, number: "1"), version=version)
    prompts = [Prompt("a", "?", ids_of("?"), "1")]
    if not refused:
        assert len(tools.generate(prompts, 2)[0]) == 2
        return
    with pytest.raises(
        VerificationError, match="sampled from version 0 of the policy, the policy is version 3"
    ) as error:
        tools.generate(prompts, 2)
    assert error.value.exit_code == 6
