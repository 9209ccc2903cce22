"""Parts of an algorithm that have no meaning together, each with its reason and a way out. No torch here."""

import math
from collections.abc import Iterator, Sequence

from lgrpo_lite.checks.fault import Fault, that_hold
from lgrpo_lite.checks.loss import loss
from lgrpo_lite.checks.sense import nonsense, unlikely
from lgrpo_lite.checks.unread import unread
from lgrpo_lite.recipe.algorithm import Algorithm
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.rollout.guide import guided_count

VALUES = (("next_value", "probe_values", "values"), ("value_cache", "value_cache", "V*"))
TEMPLATES = (
    ("best_draft", "draft_template", ("question", "draft")),
    ("refine_best", "refine_template", ("question", "best")),
)


def contradictions(recipe: Recipe) -> Iterator[Fault]:
    """Every fault of a recipe whose algorithm is complete."""
    a = recipe.algorithm
    yield from whatever_trains(recipe)
    yield from _groups(recipe, a)
    yield from _references(recipe, a)
    yield from loss(recipe, a)
    yield from _rollout(recipe, a)
    yield from unread(recipe, a)


def whatever_trains(recipe: Recipe) -> Iterator[Fault]:
    """Faults that are faults under any algorithm."""
    yield from nonsense(recipe)
    yield from _evaluation(recipe)


def warnings(recipe: Recipe) -> list[str]:
    """Combinations that run and are seldom meant."""
    a = recipe.algorithm
    lines = [*unlikely(recipe)]
    if not recipe.data.eval and recipe.data.holdout is None:
        without = "no held-out data: the run will have no before and after"
        lines.append(
            f"{without}; name data.eval, or set data.holdout=0.1 to keep a tenth of data.train for it"
        )
    if a.kl.coef > 0 and a.anchored and a.residual.anchor == "ref":
        lines.append("kl.coef > 0 with residual.anchor=ref pulls to the reference twice")
    if a.anchored and a.admit != "all":
        dropped = "groups of equal rewards, which a residual would pull to its anchor"
        lines.append(f"admit={a.admit} drops {dropped}")
    probe = a.probe_values
    if probe and (probe.only == "all" or probe.first == "probe" or probe.k > 4):
        costly = f"probe_values asks for {probe.k} continuations from every step of every answer"
        cheap = "algorithm.probe_values={k: 3, max_states: 8, only: mixed, first: group_mean}"
        lines.append(f"{costly}; {cheap} costs a small part of it")
    old = a.ratio == "sequence" or (a.anchored and a.residual.anchor == "old")
    if old and recipe.optim.updates_per_batch == 1:
        same = "this differs from a policy gradient in nothing"
        lines.append(f"with optim.updates_per_batch=1 every ratio is 1, so {same}")
    return lines


def answers_left(recipe: Recipe) -> int:
    """Answers of a group that are scored to be trained: those that are no drafts."""
    n = recipe.rollout.group_size
    draft = recipe.algorithm.best_draft
    if not draft:
        return n
    drafts = n // 2 if draft.drafts is None else draft.drafts
    return n - drafts


def _evaluation(recipe: Recipe) -> Iterator[Fault]:
    if recipe.eval.temperature == 0 and recipe.eval.k > 1:
        what = "at temperature 0 all samples of a problem are the same"
        yield what, "eval.k", "set eval.k=1, or a temperature above 0"
    if recipe.train.keep.metric == "greedy" and not recipe.eval.greedy:
        what = "train.keep.metric=greedy needs greedy answers"
        yield what, "train.keep.metric", "set eval.greedy=true, or another metric"
    for i, source in enumerate(recipe.data.eval):
        if source.weight != 1:
            what = "an evaluation asks every question as often as any other"
            yield what, f"data.eval.{i}.weight", "remove it; weight is for data.train"
    if "" in (recipe.rollout.stop or ()):
        yield "an empty text would end every answer at once", "rollout.stop", "leave it out"
    if not recipe.rollout.stop_shown and not recipe.rollout.stop:
        yield "there is no stop text to leave out", "rollout.stop_shown", "remove it, or give rollout.stop"


def _groups(recipe: Recipe, a: Algorithm) -> Iterator[Fault]:
    key = "rollout.group_size"
    size = recipe.rollout.group_size
    n = answers_left(recipe)
    more = "set rollout.group_size to 2 or more"
    after = ""
    fix = more
    if a.best_draft:
        after = " after the drafts"
        fix = "raise it, or lower algorithm.best_draft.drafts"
    compared = f"leaves one answer{after} with {a.use!r}: the advantage compares the answers of a group"
    probe = a.probe_values
    probed = probe and (probe.only == "mixed" or probe.first == "group_mean")
    alone = "one answer is a group without two rewards and its own mean, so nothing would be probed"
    kept = a.select is not None and a.whole_groups and n * a.select.keep < 2
    yield from that_hold(
        (a.best_draft and n == size, f"group_size {n} leaves no answer for a draft", key, more),
        (
            n < 1,
            f"group_size {size} leaves no answer after the drafts",
            key,
            "raise it, or lower best_draft.drafts",
        ),
        (n < 2 and a.compares_answers, f"group_size {size} {compared}, one has nothing to compare", key, fix),
        (
            n < 2 and a.admit != "all",
            f"admit={a.admit} wants two different rewards, and one answer has one",
            "algorithm.admit",
            "set admit=all",
        ),
        (n < 2 and a.refine_best, "refine_best needs a best answer to refine", key, more),
        (
            n < 2 and probed,
            alone,
            "algorithm.probe_values",
            "set only=all and first=probe, or a larger rollout.group_size",
        ),
        (
            kept,
            "one answer stays of a group, and centre=group compares answers",
            "algorithm.select.keep",
            "raise it",
        ),
    )
    yield from _guided(a, n)
    yield from _preference(a, n)


def _guided(a: Algorithm, n: int) -> Iterator[Fault]:
    if a.guide is None or a.guide.baseline != "separate" or not a.compares_answers:
        return
    guided = guided_count(n - (a.refine_best is not None), a.guide.share)
    if 1 in (guided, n - guided):
        alone = "with baseline=separate one answer alone has nothing to compare"
        fix = "set baseline=shared, or another share or group_size"
        yield f"of {n} answers {guided} are guided: {alone}", "algorithm.guide.baseline", fix


def _preference(a: Algorithm, n: int) -> Iterator[Fault]:
    p = a.length_preference
    if p is None:
        return
    if p.r * math.sqrt(max(0, n - 1)) >= 1:
        what = f"r={p.r:.3g} with group_size {n}: h = 1 + r z may reach 0, since z may reach sqrt(G-1)"
        fix = f"set r below {1 / math.sqrt(n - 1):.3g}, or a smaller group_size"
        yield what, "algorithm.length_preference.r", fix
    if p.clamp and not p.clamp[0] <= p.lambda_init <= p.clamp[1]:
        what = f"lambda_init {p.lambda_init:g} lies outside clamp {list(p.clamp)}"
        yield what, "algorithm.length_preference.clamp", "widen clamp, or set it to null"


def _references(recipe: Recipe, a: Algorithm) -> Iterator[Fault]:
    if recipe.model.lora is not None:
        return
    fix = "train an adapter"
    lost = "the reference is the adapter switched off; with model.lora=null there is none"
    if a.kl.coef > 0:
        yield f"a KL needs a reference: {lost}", "algorithm.kl.coef", f"set algorithm.kl.coef=0, or {fix}"
    if a.needs_reference:
        what = f"residual.anchor=ref needs a reference: {lost}"
        yield what, "algorithm.residual.anchor", f"set anchor=old, or {fix}"
    if a.value_cache:
        yield f"value_cache samples the reference: {lost}", "algorithm.value_cache", fix


def _rollout(recipe: Recipe, a: Algorithm) -> Iterator[Fault]:
    yield from _values(a)
    if a.value_cache and a.best_draft:
        what = "V* is of the plain prompt, best_draft trains under another one"
        yield what, "algorithm.best_draft", "set best_draft=null, or another advantage"
    if a.guide:
        yield from _solutions(recipe)
    for part, key, names in TEMPLATES:
        if getattr(a, part):
            yield from _template(recipe, part, key, names)
    yield from _curriculum(recipe, a)
    first = recipe.rewards[0].use
    if first in ("overlong", "length"):
        what = f"the first reward says what is right, and {first} is a penalty"
        yield what, "rewards.0.use", "put the verifier first"


def _solutions(recipe: Recipe) -> Iterator[Fault]:
    for i, source in enumerate(recipe.data.train):
        if source.solution is None and (source.path or source.hf):
            what = "guide shows a piece of a worked solution, and this source names none"
            yield what, f"data.train.{i}", "add solution: COLUMN, or set algorithm.guide=null"


def _template(recipe: Recipe, part: str, key: str, names: Sequence[str]) -> Iterator[Fault]:
    template = getattr(recipe.data, key)
    for name in names:
        if f"{{{name}}}" not in template:
            what = f"the template of {part} does not show the {name}"
            yield what, f"data.{key}", f"put {{{name}}} into it"


def _values(a: Algorithm) -> Iterator[Fault]:
    """Advantages and the bricks that make the values they are of."""
    for advantage, part, gives in VALUES:
        on = getattr(a, part) is not None
        used = a.advantage == advantage
        if used and not on:
            what = f"advantage={advantage} needs the {gives} that {part} makes"
            yield what, "algorithm.advantage", f"add {part}={{}}"
        if on and not used and ".py:" not in a.advantage:
            what = f"{part} is paid for and read by nothing but advantage={advantage}"
            yield what, f"algorithm.{part}", f"set advantage={advantage}, or {part}=null"


def _curriculum(recipe: Recipe, a: Algorithm) -> Iterator[Fault]:
    settings = recipe.rollout.curriculum
    if settings.use == "none":
        for key in ("rate", "ordered_every"):
            if getattr(settings, key) != type(settings).model_fields[key].default:
                fix = "remove it, or set rollout.curriculum.use=difficulty_pool"
                yield f"{key} is not read by use=none", f"rollout.curriculum.{key}", fix
    elif a.value_cache and not a.value_cache.drop_unsolved:
        before = "value_cache asks about the prompts to come beforehand"
        what = f"{before}, and difficulty_pool decides on the way which come"
        other = "algorithm.value_cache.drop_unsolved=true, which asks about all prompts"
        yield what, "rollout.curriculum.use", f"set rollout.curriculum.use=none, or {other}"
