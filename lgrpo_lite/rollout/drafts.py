"""Rollouts that build on an earlier answer: iGRPO shows the best draft, RGR-GRPO refines the best answer."""

from collections.abc import Sequence
from dataclasses import replace

from lgrpo_lite.recipe.algorithm import BestDraft, RefineBest
from lgrpo_lite.rollout.tools import Tools
from lgrpo_lite.types import Group, Outcome, Prompt, Rollout


def best_index(rewards: Sequence[float]) -> int:
    """The first of the largest rewards. Answers are exchangeable as sampled, so that is a fair choice."""
    return max(range(len(rewards)), key=lambda i: rewards[i])  # max keeps the first of equals


def best_draft(
    prompts: Sequence[Prompt], n: int, settings: BestDraft, template: str, tools: Tools
) -> tuple[list[Prompt], int]:
    """iGRPO's first stage (arXiv:2602.09000): prompts with their best draft, and what is left of n answers.

    No gradient goes through the drafts. Where every draft lacks a reward, or `when: wrong` finds the best one
    right, the prompt stays as it is.
    """
    drafts = n // 2 if settings.drafts is None else settings.drafts
    groups = tools.score(prompts, tools.generate(prompts, drafts))
    pairs = zip(prompts, groups, strict=True)
    with_drafts = [_with_draft(prompt, group, settings, template, tools) for prompt, group in pairs]
    return with_drafts, n - drafts


def _with_draft(prompt: Prompt, group: Group, settings: BestDraft, template: str, tools: Tools) -> Prompt:
    if not group.rollouts:
        return prompt
    best = group.rollouts[best_index(group.rewards)]
    if settings.when == "wrong" and best.score.outcome is Outcome.ok:
        return prompt
    draft = _said(best, settings.max_tokens, tools)
    return tools.ask(prompt, filled(template, question=prompt.text, draft=draft))


def refine_best(groups: Sequence[Group], settings: RefineBest, template: str, tools: Tools) -> list[Group]:
    """Each group with one more answer (arXiv:2511.12344): its best one refined.

    Where that is perfect, the answer is an ordinary one.
    A refinement is sampled under (question, best answer, what failed) and trained under the bare question, so
    it carries no log-prob of its sampling and is marked `off`.
    """
    hints = [_hint(group, settings, template, tools) for group in groups]
    prompts = []
    for group, hint in zip(groups, hints, strict=True):
        prompt = group.prompt
        prompts.append(prompt if hint is None else tools.ask(prompt, hint))
    answers = list(tools.generate(prompts, 1))
    for i, hint in enumerate(hints):
        if hint is not None:
            answers[i] = [replace(answer, logprobs=None) for answer in answers[i]]
    extra = tools.score([group.prompt for group in groups], answers)
    larger = []
    for group, more, hint in zip(groups, extra, hints, strict=True):
        added = [replace(rollout, off=hint is not None) for rollout in more.rollouts]
        rollouts = (*group.rollouts, *added)
        missing = group.missing + more.missing
        larger.append(replace(group, rollouts=rollouts, missing=missing))
    return larger


def _hint(group: Group, settings: RefineBest, template: str, tools: Tools) -> str | None:
    """The refining question; None where there is nothing to refine."""
    if not group.rollouts:
        return None
    best = group.rollouts[best_index(group.rewards)]
    missed = shortcomings(best)
    if settings.when == "imperfect" and not missed:
        return None
    shown = _said(best, settings.max_tokens, tools)
    listed = "\n".join(f"- {line}" for line in missed)
    return filled(template, question=group.prompt.text, best=shown, failed=listed)


def _said(answer: Rollout, most: int, tools: Tools) -> str:
    """An answer's text, with how it was made to begin unless it is too long."""
    ids = answer.completion.token_ids
    begin = answer.prompt.prefill if len(ids) <= most else ""
    return (begin + tools.shortened(ids, most)).strip()


def shortcomings(answer: Rollout) -> list[str]:
    """What an answer lacks: criteria of its rubric, or, without a rubric, being right.

    An answer with a reward of 1 may lack some criteria.
    """
    if answer.score.criteria:
        pairs = zip(answer.prompt.rubric, answer.score.criteria, strict=True)
        return [criterion.text for criterion, satisfied in pairs if not satisfied]
    return [] if answer.score.outcome is Outcome.ok else ["The final answer is not correct."]


def filled(template: str, **parts: str) -> str:
    """The template with its {names} replaced, once each: braces inside an answer stay as they are."""
    pieces = template
    for name in parts:
        pieces = pieces.replace("{" + name + "}", f"\0{name}\0")
    for name, text in parts.items():
        pieces = pieces.replace(f"\0{name}\0", text.replace("\0", ""))
    return pieces
