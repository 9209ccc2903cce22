"""Two evaluations problem by problem: the base and the trained embedded model, and the
parts on numbers written down.
"""

import dataclasses
import json
import shutil

import pytest
from support import lgrpo

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.evaluation.figures import Estimate, Problem, Sample
from lgrpo_lite.evaluation.paired import Side, compare, newest, read_side, sentence, support
from lgrpo_lite.monitor import plots
from lgrpo_lite.monitor.tail import Tail

TRAIN = [
    "train.steps=6", "train.eval_every=3", "train.save_every=6", "data.eval.limit=32", "eval.k=2", "export.formats=[adapter]",
    "train.keep.metric=pass", "optim.lr=2e-3", "rollout.prompts_per_step=8", "safety.sync_proof_every=0",
]  # fmt: skip


def side(marks: list[str], logp: float | None = None, **about) -> Side:
    """One problem a string; 1 right, 0 wrong, - a missing reward. Two answers of one spelling vote together."""
    problems = [
        Problem(str(i), f"question {i}", "1", {}, tuple(
            Sample("", 3, "stop", m, m, "ok", None if m == "-" else float(m == "1"), None if m == "-" else m == "1",
                   base_logp_mean=logp) for m in row
        ))
        for i, row in enumerate(marks)
    ]  # fmt: skip
    facts = {"name": "x", "label": "y", "base_weights": "w", "trained": None} | about.pop("subject", {})
    known = {
        "suite": "s",
        "checker": [],
        "prompt": {},
        "temperature": 1.0,
        "model": {"max_new_tokens": 9},
        "subject": facts,
    }
    return Side("path", "x (y)", known | about, problems)


def test_differences_are_paired():
    """B is better by 0.25 on every problem, which no spread between problems hides."""
    a, b = side(["1000", "1110", "1100"] * 12), side(["1100", "1111", "1110"] * 12)
    found = compare(a, b)
    assert found.difference == Estimate(0.25, 0.25, 0.25) and found.avg == (0.5, 0.75)
    assert found.coverage == {"both": 36, "gained": 0, "lost": 0, "neither": 0} and found.crossover is None
    assert found.sentence == (
        "B solves 25 more of every 100 problems than A (95 % interval 25 to 25): better beyond what chance explains."
    )


def test_gained_lost_and_where_the_curves_cross():
    """A narrow B: surer where it is right, and right nowhere else."""
    found = compare(side(["1000"] * 20), side(["1111"] * 10 + ["0000"] * 10))
    assert found.coverage == {"both": 10, "gained": 0, "lost": 10, "neither": 0}
    assert found.ks == [1, 2, 4] and found.crossover == 4
    assert [e.value for e in found.curves[0]] == pytest.approx([0.25, 0.5, 1.0])
    assert [e.value for e in found.curves[1]] == pytest.approx([0.5, 0.5, 0.5])


def test_other_numbers_of_samples_have_equal_chances():
    """A had eight chances and B two: coverage and the majority look at the first two of both."""
    found = compare(side(["00111111"] * 4), side(["00"] * 4))
    assert (
        found.k == (8, 2)
        and found.ks == [1, 2]
        and found.coverage["neither"] == 4
        and found.maj == (0.0, 0.0)
    )
    assert found.avg == (0.75, 0.0)


def test_missing_rewards_leave_the_pair():
    found = compare(side(["--", "10", "11"]), side(["11", "11", "--"]))
    assert found.problems == 1 and found.difference.value == 0.5 and sum(found.coverage.values()) == 1
    with pytest.raises(ConfigError, match="no problem has a reward on both sides"):
        compare(side(["--", "1-"]), side(["11", "--"]))


@pytest.mark.parametrize(
    ("estimate", "problems", "words"),
    [
        (
            Estimate(0.06, 0.02, 0.10),
            200,
            "B solves 6.0 more of every 100 problems than A (95 % interval 2.0 to 10): better beyond",
        ),
        (
            Estimate(-0.06, -0.10, -0.02),
            200,
            "A solves 6.0 more of every 100 problems than B (95 % interval 2.0 to 10): better b",
        ),
        (Estimate(0.01, -0.02, 0.04), 200, "(95 % interval -2.0 to 4.0): this may be chance."),
        (Estimate(0.5, 0.2, 0.8), 10, "better, though on few problems."),
        (Estimate(0.0, 0.0, 0.0), 5, "A and B are right equally often on every one of these 5 problems."),
        (Estimate(0.0, -0.1, 0.1), 50, "this may be chance."),
    ],
)
def test_the_sentence(estimate, problems, words):
    assert words in sentence(estimate, problems)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (side(["11", "10", "10"]), "s with 2 problems and s with 3"),
        (side(["11", "11"], suite="t", checker=[{"use": "exact"}]), "checked by different rewards"),
        (
            dataclasses.replace(side(["11"]), problems=side(["11", "11", "11"]).problems[1:]),
            "questions or gold answers differ",
        ),
    ],
)
def test_other_problems_are_refused(other, words):
    with pytest.raises(ConfigError, match=words):
        compare(side(["11", "10"]), other)


def test_what_may_differ_is_told():
    found = compare(
        side(["11"]), side(["10"], temperature=0.5, model={"max_new_tokens": 7}, prompt={"system": "s"})
    )
    told = " ".join(found.warnings)
    assert "differ in temperature: 1.0 and 0.5" in told and "differ in prompt" in told
    assert "max_new_tokens: 9 and 7" in told and "1 problems are few" in told


def test_support_counts_right_answers_by_the_bases_own_samples():
    """99 samples of the base at -1 and one at -5: the 1 % quantile lies between; what is below it is outside."""
    base = side(["00"] * 50, logp=-1.0).problems
    base[0] = dataclasses.replace(
        base[0], samples=(dataclasses.replace(base[0].samples[0], base_logp_mean=-5.0),) * 2
    )
    tuned = [
        *side(["10"] * 10, logp=-0.5).problems,
        *side(["01"] * 30, logp=-9.0).problems,
        *side(["00"] * 10, logp=-0.5).problems,
    ]
    found = support(base, tuned)
    assert (found.right, found.inside, found.gained, found.gained_inside) == (40, 0.25, 40, 10)
    assert -5.0 <= found.threshold <= -1.0
    assert support(base, side(["00"] * 50, logp=-1.0).problems) is None


TRAINED = {"subject": {"trained": "abc"}}


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (TRAINED, TRAINED, "A is not the base model"),
        ({}, {}, "B is a base model itself"),
        ({}, {"subject": {"trained": "abc", "base_weights": "other"}}, "the base of B is not A"),
        ({"temperature": 0.5}, TRAINED, "different temperatures"),
        ({}, TRAINED, ""),
    ],
)
def test_when_the_support_can_be_asked_about(a, b, words):
    found = compare(side(["10"], -1.0, **a), side(["11"], -1.0, **b))
    assert words in found.no_support and (found.support is None) == bool(words)


# ------------------------------------------------------------------------------------------- the real thing


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run and the evaluations of its base and of its end."""
    runs = tmp_path_factory.mktemp("runs")
    assert lgrpo("recipe", "tiny-math", *TRAIN, "--runs", runs, "--name", "one", "--ui", "none") == 0
    for which in ("base", "last"):
        argv = ["--suite", "arithmetic", "--limit", "48", "--k", "4", "--checkpoint", which]
        assert lgrpo("eval", "one", "--runs", runs, *argv) == 0
    return runs / "one"


def test_base_and_trained(trained, tmp_path, capfd):
    """Table, sentence and plots; the trained model's right answers are judged by the base's likelihoods."""
    a, b = (trained / "evals" / f"arithmetic-{label}-k4-t1-s0-n48" for label in ("base", "step-000006"))
    assert lgrpo("compare", a, b, "--out", tmp_path / "out") == 0
    out = capfd.readouterr().out
    for words in ("one (base)", "one (step-000006)", "avg@k", "pass@4", "maj@4", "of every 100 problems than", "95 % interval",
                  "gained by B", "right answers are as likely under the base"):  # fmt: skip
        assert words in out, words
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    picture = (tmp_path / "out" / "compare.svg").read_text()
    assert "<svg" in picture and "pass@k" in picture and "problems solved at least once" in picture
    assert lgrpo("compare", a, b, "--out", tmp_path / "again", "--json") == 0
    reply = json.loads(capfd.readouterr().out)
    assert (tmp_path / "again" / "compare.svg").read_text() == picture
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert (
        reply["ok"]
        and reply["result"]["difference"] == found["difference"]
        and found["support"]["inside"] > 0.5
    )
    means = [read_side(path).problems for path in (a, b)]
    for rows, asked in zip(means, (None, "logp"), strict=True):
        assert all((s.logp is None) == (asked is None) and s.base_logp < 0 for p in rows for s in p.samples)
    assert any(abs(s.logp - s.base_logp) > 1e-3 for p in means[1] for s in p.samples)


def test_a_run_stands_for_its_newest_evaluation(trained, capfd):
    base = trained / "evals" / "arithmetic-base-k4-t1-s0-n48"
    assert newest(trained).name == "arithmetic-step-000006-k4-t1-s0-n48"
    assert lgrpo("compare", base, trained) == 0 and "one (step-000006)" in capfd.readouterr().out
    assert lgrpo("compare", trained, trained) == 2 and "a run and itself" in capfd.readouterr().err
    assert lgrpo("compare", base) == 2 and "takes two evaluations" in capfd.readouterr().err
    assert lgrpo("compare", base, "nobody", "--runs", trained.parent) == 2


def test_two_runs_have_curves_and_their_evaluations(trained, tmp_path, capfd):
    """The curves, and below them what the newest evaluations of the same problems say;
    without one in common, why not.
    """
    other = shutil.copytree(trained, tmp_path / "other", symlinks=True)
    assert lgrpo("compare", trained, other, "--out", tmp_path / "out") == 0
    out = capfd.readouterr().out
    assert (
        out.index("settings")
        < out.index("held-out avg@k")
        < out.index("arithmetic, 48 problems")
        < out.index("curves.json")
    )
    assert "are right equally often on every one of these 48 problems" in out
    names = {"curves.json", "curves.png", "curves.svg", "compare.json", "compare.png", "compare.svg"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert lgrpo("compare", trained, other, "--json") == 0
    found = json.loads(capfd.readouterr().out)["result"]
    assert found["evaluations"]["difference"]["value"] == 0.0 and len(found["runs"]) == 2
    for about in other.glob("evals/*/result.json"):
        about.write_text(about.read_text().replace('"problems_hash": "', '"problems_hash": "0'))
    assert lgrpo("compare", trained, other) == 0
    assert "not compared: the run has no finished evaluation of arithmetic" in " ".join(
        capfd.readouterr().out.split()
    )
    evaluation = trained / "evals" / "arithmetic-base-k4-t1-s0-n48"
    assert (
        lgrpo("compare", evaluation, trained, other) == 2
        and "two evaluations, no more" in capfd.readouterr().err
    )


def test_what_is_no_evaluation_is_told(trained, tmp_path, capfd):
    (tmp_path / "about.json").write_text("{}")
    assert lgrpo("compare", tmp_path, trained / "evals" / "arithmetic-base-k4-t1-s0-n48") == 2
    assert "this evaluation is not finished" in capfd.readouterr().err
    with pytest.raises(ConfigError, match="no finished evaluation of x"):
        newest(trained, "x", "0")


def test_the_run_kept_its_evaluations_and_its_best(trained):
    """Before, every three steps, after; samples of each; the best by pass@k; a
    report with intervals and plots.
    """
    evals = [json.loads(line) for line in (trained / "evals.jsonl").read_text().splitlines()]
    assert [row["step"] for row in evals] == [0, 3, 6]
    assert sorted(p.name for p in (trained / "evals").glob("*.gz")) == [
        f"step-{s:06d}.jsonl.gz" for s in (0, 3, 6)
    ]
    best = max(evals, key=lambda row: row["pass_at_k"])
    state = json.loads((trained / "checkpoints" / "best" / "state.json").read_text())
    assert state["best_score"] == state["score"] == best["pass_at_k"]
    report = (trained / "report.md").read_text()
    for words in (
        "| accuracy, 32 problems",
        " to ",
        "most frequent answer right (maj@k)",
        "(report.svg)",
        "of every 100 problems",
    ):
        assert words in report, words
    assert "held-out problems" in (trained / "report.svg").read_text()


def test_without_matplotlib_the_rest_is_there(trained, tmp_path, monkeypatch, capfd):
    from lgrpo_lite.folder.report import write_report

    monkeypatch.setattr(plots, "available", lambda: False)
    a, b = (trained / "evals" / f"arithmetic-{label}-k4-t1-s0-n48" for label in ("base", "step-000006"))
    assert lgrpo("compare", a, b, "--out", tmp_path) == 0
    assert "pip install" in capfd.readouterr().err and [p.name for p in tmp_path.iterdir()] == [
        "compare.json"
    ]
    before = (trained / "report.md").read_text()
    write_report(trained)
    assert "no plots: matplotlib is not installed" in (trained / "report.md").read_text()
    (trained / "report.md").write_text(before)


@pytest.mark.parametrize("keep", ["length_lambda", "groups_mixed"])
def test_plots_of_any_run(trained, tmp_path, keep):
    """Without λ, without groups, without evaluations, of one step: a picture all
    the same, and the same one twice.
    """
    view = Tail(trained).refresh()
    view.records = [
        dataclasses.replace(r, length_lambda=None, groups=0)
        for r in view.records[: 1 if keep[0] == "g" else None]
    ]
    view.evals = []
    pictures = [plots.plot_run(view, tmp_path, name)[0].read_bytes() for name in ("one", "two")]
    assert pictures[0] == pictures[1] and b"<svg" in pictures[0]
