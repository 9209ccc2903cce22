"""Parts of an algorithm that have no meaning together, each with its reason and
what to do instead. No torch here.
"""

import math
from collections.abc import Iterator
from typing import Any

from lgrpo_lite.objective.named import NAMED
from lgrpo_lite.recipe.algorithm import Algorithm
from lgrpo_lite.recipe.plugin import found
from lgrpo_lite.recipe.schema import Recipe, section_inside
from lgrpo_lite.rollout.guide import guided_count

Fault = tuple[str, str, str]  # why, the key that is shown, what to do
# part, or key of a part -> (the key that decides whether it is read, the values
# with which it is; None: any but 0)
READ_BY = {
    "clip": ("surrogate", ("clipped",)),
    "cispo": ("surrogate", ("cispo",)),
    "residual": ("surrogate", ("residual",)),
    "residual.is_form": ("residual.is_clip", None),
    "residual.log_z_lr": ("residual.centre", ("learned",)),
    "reduce_constant": ("reduce", ("constant",)),
    "reduce_rows": ("reduce", ("micro_token_mean",)),
    "advantage_std": ("advantage", ("mean_std",)),
    "advantage_eps": ("advantage", ("mean_std",)),
    "kl.estimator": ("kl.coef", None),
    "kl.weighted": ("kl.coef", None),
    "kl.max": ("kl.coef", None),
    "trace.style": ("trace.mode", ("trace", "weight")),
    "trace.floor": ("trace.mode", ("trace", "weight")),
    "trace.normalize": ("trace.mode", ("trace", "weight")),
}

BY_TOKEN = ("trace", "prefix_share", "top_entropy")  # parts that tell the tokens of an answer apart
VALUES = (("next_value", "probe_values", "values"), ("value_cache", "value_cache", "V*"))
TEMPLATES = (
    ("best_draft", "draft_template", ("question", "draft")),
    ("refine_best", "refine_template", ("question", "best")),
)


def contradictions(recipe: Recipe) -> Iterator[Fault]:
    """Every fault of a recipe whose algorithm is complete."""
    a = recipe.algorithm
    yield from _groups(recipe, a)
    yield from _references(recipe, a)
    yield from _loss(recipe, a)
    yield from _rollout(recipe, a)
    yield from _unread(recipe, a)
    yield from _evaluation(recipe)


def warnings(recipe: Recipe) -> list[str]:
    """Combinations that run and are seldom meant."""
    a = recipe.algorithm
    told = []
    if a.kl.coef > 0 and a.anchored and a.residual.anchor == "ref":
        told.append("kl.coef > 0 with residual.anchor=ref pulls to the reference twice")
    if a.anchored and a.admit != "all":
        told.append(
            f"admit={a.admit} drops groups of equal rewards, which a residual would pull to its anchor"
        )
    probe = a.probe_values
    if probe and (probe.only == "all" or probe.first == "probe" or probe.k > 4):
        cheap = (
            "algorithm.probe_values={k: 3, max_states: 8, only: mixed, first: group_mean} costs a small part"
            " of it"
        )
        told.append(f"probe_values asks for {probe.k} continuations from every step of every answer; {cheap}")
    old = a.ratio == "sequence" or (a.anchored and a.residual.anchor == "old")
    if old and recipe.optim.updates_per_batch == 1:
        told.append(
            "with optim.updates_per_batch=1 every ratio is 1, so this differs from a policy gradient in"
            " nothing"
        )
    return told


def answers_left(recipe: Recipe) -> int:
    """Answers of a group that are scored to be trained: those that are no drafts."""
    n, a = recipe.rollout.group_size, recipe.algorithm
    if a.best_draft:
        n -= n // 2 if a.best_draft.drafts is None else a.best_draft.drafts
    return n


def _evaluation(recipe: Recipe) -> Iterator[Fault]:
    if recipe.eval.temperature == 0 and recipe.eval.k > 1:
        yield (
            "at temperature 0 all samples of a problem are the same",
            "eval.k",
            "set eval.k=1, or a temperature above 0",
        )
    if recipe.train.keep.metric == "greedy" and not recipe.eval.greedy:
        yield (
            "train.keep.metric=greedy needs greedy answers",
            "train.keep.metric",
            "set eval.greedy=true, or another metric",
        )


def _groups(recipe: Recipe, a: Algorithm) -> Iterator[Fault]:
    n, size, key = answers_left(recipe), recipe.rollout.group_size, "rollout.group_size"
    more = "set rollout.group_size to 2 or more"
    after, fix = ("", more)
    if a.best_draft:
        after, fix = (" after the drafts", "raise it, or lower algorithm.best_draft.drafts")
    compared = f"leaves one answer{after} with {a.use!r}: the advantage compares the answers of a group"
    probed = a.probe_values and (a.probe_values.only == "mixed" or a.probe_values.first == "group_mean")
    alone = "one answer is a group without two rewards and its own mean, so nothing would be probed"
    kept = a.select is not None and a.whole_groups and n * a.select.keep < 2
    yield from _that_hold(
        (a.best_draft and n == size, f"group_size {n} leaves no answer for a draft", key, more),
        (n < 1, f"group_size {size} leaves no answer after the drafts", key,
         "raise it, or lower best_draft.drafts"),
        (n < 2 and a.compares_answers, f"group_size {size} {compared}, one has nothing to compare", key, fix),
        (n < 2 and a.admit != "all", f"admit={a.admit} wants two different rewards, and one answer has one",
         "algorithm.admit", "set admit=all"),
        (n < 2 and a.refine_best, "refine_best needs a best answer to refine", key, more),
        (n < 2 and probed, alone, "algorithm.probe_values",
         "set only=all and first=probe, or a larger rollout.group_size"),
        (kept, "one answer stays of a group, and centre=group compares answers", "algorithm.select.keep",
         "raise it"),
    )  # fmt: skip
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
        yield (
            f"residual.anchor=ref needs a reference: {lost}",
            "algorithm.residual.anchor",
            f"set anchor=old, or {fix}",
        )
    if a.value_cache:
        yield f"value_cache samples the reference: {lost}", "algorithm.value_cache", fix


def _loss(recipe: Recipe, a: Algorithm) -> Iterator[Fault]:
    if a.anchored:
        yield from _residual(a)
    if a.ratio == "sequence":
        yield from _sequence_ratio(a)
    traced = a.trace is not None and a.trace.mode == "trace"
    floor, cap, cispo = a.cispo.floor or 0.0, a.cispo.cap, a.surrogate == "cispo"
    unbounded = a.surrogate == "unclipped" and recipe.optim.updates_per_batch > 1
    yield from _that_hold(
        (cispo and traced, "the trace acts on the ratio, and the ratio of cispo carries no gradient",
         "algorithm.trace", "set trace.mode=weight, or surrogate=clipped"),
        (cispo and floor > cap, f"floor {floor:g} is above cap {cap:g}", "algorithm.cispo.floor", "lower it"),
        (a.shaped and a.trace, "shaped takes the place of the ratio, so refined answers would have no trace",
         "algorithm.trace", "set trace=null"),
        (a.shaped and unbounded, "shaped with several updates a batch and no bound of the ratio runs away",
         "optim.updates_per_batch", "set it to 1, or algorithm.surrogate=clipped"),
        (a.shaped and not a.refine_best,
         "shaped speaks of answers that refine_best makes, and there are none",
         "algorithm.shaped", "add refine_best={}"),
        (a.advantage == "beta" and not _binary(recipe),
         "advantage=beta is for one reward of weight 1 that gives 0 or 1",
         "algorithm.advantage", "use the reward exact, numeric or format alone, or another advantage"),
        (a.select and a.advantage == "next_value", "select ranks answers, next_value credits tokens",
         "algorithm.select", "set select=null"),
    )  # fmt: skip


def _residual(a: Algorithm) -> Iterator[Fault]:
    one = "a residual is one number an answer"
    yield from _that_hold(
        (a.advantage == "next_value", f"{one}, next_value credits tokens", "algorithm.advantage",
         "use another advantage, or surrogate=clipped"),
        (a.reduce != "sequence_mean", f"{one}: reduce={a.reduce} would count it once a token",
         "algorithm.reduce",
         "set reduce=sequence_mean"),
        *((getattr(a, part), f"{one}, {part} weighs tokens", f"algorithm.{part}",
           f"switch {part} off, or use surrogate=clipped") for part in BY_TOKEN),
        (a.ratio == "sequence", "a residual takes its own log-ratio, ratio=sequence is not read",
         "algorithm.ratio",
         "set ratio=token"),
        (a.shaped, "shaped replaces the gain of refined answers, a residual has none", "algorithm.shaped",
         "set shaped=null"),
        (a.residual.pairs and a.residual.centre != "group",
         "pairs are differences inside a group, so they need centre=group", "algorithm.residual.pairs",
         "set centre=group"),
    )  # fmt: skip


def _sequence_ratio(a: Algorithm) -> Iterator[Fault]:
    whole = "one ratio an answer gives all its tokens one gradient"
    yield from _that_hold(
        (a.reduce != "sequence_mean",
         f"one ratio an answer with reduce={a.reduce} counts long answers by their length",
         "algorithm.reduce", "set reduce=sequence_mean"),
        *((getattr(a, part), f"{whole}, {part} tells tokens apart", f"algorithm.{part}",
           f"switch {part} off, or set ratio=token") for part in BY_TOKEN),
        (a.advantage == "next_value", f"{whole}, next_value credits tokens", "algorithm.advantage",
         "set ratio=token, or another advantage"),
    )  # fmt: skip


def _that_hold(*rows: tuple[Any, str, str, str]) -> Iterator[Fault]:
    """Of rows (condition, why, key, what to do) those whose condition is true."""
    for condition, why, key, fix in rows:
        if condition:
            yield why, key, fix


def _rollout(recipe: Recipe, a: Algorithm) -> Iterator[Fault]:
    yield from _values(a)
    if a.value_cache and a.best_draft:
        what = "V* is of the plain prompt, best_draft trains under another one"
        yield what, "algorithm.best_draft", "set best_draft=null, or another advantage"
    for i, source in enumerate(recipe.data.train if a.guide else ()):
        if source.solution is None and (source.path or source.hf):
            what = "guide shows a piece of a worked solution, and this source names none"
            yield what, f"data.train.{i}", "add solution: COLUMN, or set algorithm.guide=null"
    for part, key, names in TEMPLATES:
        for name in names if getattr(a, part) else ():
            if "{" + name + "}" not in getattr(recipe.data, key):
                what = f"the template of {part} does not show the {name}"
                yield what, f"data.{key}", f"put {{{name}}} into it"
    yield from _curriculum(recipe, a)
    first = recipe.rewards[0].use
    if first in ("overlong", "length"):
        what = f"the first reward says what is right, and {first} is a penalty"
        yield what, "rewards.0.use", "put the verifier first"


def _values(a: Algorithm) -> Iterator[Fault]:
    """Advantages and the bricks that make the values they are of."""
    for advantage, part, gives in VALUES:
        if a.advantage == advantage and getattr(a, part) is None:
            what = f"advantage={advantage} needs the {gives} that {part} makes"
            yield what, "algorithm.advantage", f"add {part}={{}}"
        if getattr(a, part) is not None and a.advantage != advantage and ".py:" not in a.advantage:
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
        what = (
            "value_cache asks about the prompts to come beforehand, and difficulty_pool decides on the way"
            " which come"
        )
        fix = (
            "set rollout.curriculum.use=none, or algorithm.value_cache.drop_unsolved=true, which asks about"
            " all prompts"
        )
        yield what, "rollout.curriculum.use", fix


def _unread(recipe: Recipe, a: Algorithm) -> Iterator[Fault]:
    """Parts that were set, away from their default and from the row's own, and that nothing reads."""
    row = found(a.use, NAMED, recipe.where("algorithm.use"), "algorithm")()
    for part, (key, values) in READ_BY.items():
        if "." in part and _at(a, part.rpartition(".")[0]) is None:
            continue  # the section is off
        decides = _at(a, key)
        read = bool(decides) if values is None else decides in values or ".py:" in str(decides)
        if not read and _at(a, part) not in (_default(part), _at(row, part)):
            wanted = "a value above 0" if values is None else " or ".join(values)
            yield (
                f"{part} is not read by {key}={decides}",
                f"algorithm.{part}",
                f"remove it, or set {key}={wanted}",
            )


def _at(a: Algorithm, key: str) -> Any:
    """A dotted key of an algorithm; None below a section that is off."""
    node: Any = a
    for name in key.split("."):
        node = None if node is None else getattr(node, name)
    return node


def _default(key: str) -> Any:
    section: Any = Algorithm
    *above, last = key.split(".")
    for name in above:
        section = section_inside(section.model_fields[name].annotation)
    return section.model_fields[last].get_default(call_default_factory=True)


def _binary(recipe: Recipe) -> bool:
    """Whether the rewards can be 0 and 1 only; a function of the user's own is
    trusted, and checked as it comes.
    """
    first = recipe.rewards[0]
    return (
        len(recipe.rewards) == 1
        and first.weight == 1
        and (first.use in ("exact", "numeric", "format") or ".py:" in first.use)
    )
