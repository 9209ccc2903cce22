"""Rollouts that build on an earlier answer: the best draft in the prompt (iGRPO), and the
best answer refined (RGR-GRPO).
"""

from collections.abc import Sequence
from dataclasses import replace

from lgrpo_lite.recipe.algorithm import BestDraft, RefineBest
from lgrpo_lite.rollout.tools import Tools
from lgrpo_lite.types import Group, Outcome, Prompt, Rollout


def best_index(rewards: Sequence[float]) -> int:
    """The first of the largest rewards. Answers are exchangeable as sampled, so the
    first of equals is a fair choice.
    """
    return max(range(len(rewards)), key=lambda i: (rewards[i], -i))


def best_draft(
    prompts: Sequence[Prompt], n: int, settings: BestDraft, template: str, tools: Tools
) -> tuple[list[Prompt], int]:
    """iGRPO's first stage (arXiv:2602.09000): prompts with their best draft in them, and
    how many answers of n are left.

    No gradient goes through the drafts. Where every draft lacks a reward, or `when: wrong` finds the best one
    right, the prompt stays as it is.
    """
    drafts = n // 2 if settings.drafts is None else settings.drafts
    groups = tools.score(prompts, tools.generate(prompts, drafts))
    return [
        _with_draft(prompt, group, settings, template, tools)
        for prompt, group in zip(prompts, groups, strict=True)
    ], n - drafts


def _with_draft(prompt: Prompt, group: Group, settings: BestDraft, template: str, tools: Tools) -> Prompt:
    if not group.rollouts:
        return prompt
    best = group.rollouts[best_index(group.rewards)]
    if settings.when == "wrong" and best.score.outcome is Outcome.ok:
        return prompt
    draft = tools.shortened(best.completion.token_ids, settings.max_tokens)
    return tools.ask(prompt, filled(template, question=prompt.text, draft=draft))


def refine_best(groups: Sequence[Group], settings: RefineBest, template: str, tools: Tools) -> list[Group]:
    """Each group with one answer more (arXiv:2511.12344): a refinement of its best one, or an
    ordinary answer if that is perfect.

    A refinement is sampled under (question, best answer, what failed) and trained under the bare question, so
    it carries no log-prob of its sampling and is marked `off`.
    """
    hints = [_hint(group, settings, template, tools) for group in groups]
    asked = [
        g.prompt if hint is None else tools.ask(g.prompt, hint) for g, hint in zip(groups, hints, strict=True)
    ]
    answers = tools.generate(asked, 1)
    answers = [
        [c if hint is None else replace(c, logprobs=None) for c in row]
        for row, hint in zip(answers, hints, strict=True)
    ]
    extra = tools.score([g.prompt for g in groups], answers)
    return [
        replace(
            group,
            rollouts=(*group.rollouts, *(replace(r, off=hint is not None) for r in more.rollouts)),
            missing=group.missing + more.missing,
        )
        for group, more, hint in zip(groups, extra, hints, strict=True)
    ]


def _hint(group: Group, settings: RefineBest, template: str, tools: Tools) -> str | None:
    """The refining question; None where there is nothing to refine."""
    if not group.rollouts:
        return None
    best = group.rollouts[best_index(group.rewards)]
    failed = _failed(best)
    if settings.when == "imperfect" and not failed:
        return None
    shown = tools.shortened(best.completion.token_ids, settings.max_tokens)
    return filled(
        template, question=group.prompt.text, best=shown, failed="\n".join(f"- {line}" for line in failed)
    )


def _failed(best: Rollout) -> list[str]:
    """What the best answer lacks: criteria of its rubric, or without one that it is not
    right. A reward of 1 may lack some.
    """
    if best.score.criteria:
        return [c.text for c, held in zip(best.prompt.rubric, best.score.criteria, strict=True) if not held]
    return [] if best.score.outcome is Outcome.ok else ["The final answer is not correct."]


def filled(template: str, **parts: str) -> str:
    """The template with its {names} replaced, once each: braces inside an answer stay as they are."""
    pieces = template
    for name in parts:
        pieces = pieces.replace("{" + name + "}", f"\0{name}\0")
    for name, text in parts.items():
        pieces = pieces.replace(f"\0{name}\0", text.replace("\0", ""))
    return pieces
