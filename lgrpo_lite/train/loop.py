"""The steps of a run: evaluation before, steps, evaluations and checkpoints on the
way, a stop that loses nothing.
"""

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from lgrpo_lite import progress
from lgrpo_lite.checks.rules import warnings
from lgrpo_lite.engines.probe import demand_passed, proving
from lgrpo_lite.errors import DataError, LgrpoError
from lgrpo_lite.evaluation.held_out import score_of
from lgrpo_lite.evaluation.signal import as_json, demand_signal
from lgrpo_lite.folder.chosen import chosen
from lgrpo_lite.folder.folder import RunFolder
from lgrpo_lite.folder.report import write_report
from lgrpo_lite.folder.samples import samples
from lgrpo_lite.folder.sinks import open_sinks
from lgrpo_lite.policy import checkpoint
from lgrpo_lite.policy.checkpoint import State
from lgrpo_lite.rollout.values import BLOCK
from lgrpo_lite.train.baseline import check_prompts, due, measure
from lgrpo_lite.train.evaluate import evaluate
from lgrpo_lite.train.guard import MAX_REFUSED, NonFinite
from lgrpo_lite.train.run import Run
from lgrpo_lite.train.step import train_step
from lgrpo_lite.train.stop import StopRequest
from lgrpo_lite.types import Group, StepRecord


def steps(run: Run, folder: RunFolder, stop: StopRequest, *, resume: bool) -> bool:
    """Run to the last step. True: done. False: stopped on request, saved, resumable."""
    state = _resume(run, folder) if resume else State(0, 0, 0)
    sinks = open_sinks(run.recipe, folder.path, lambda message: folder.event("warning", message=message))
    folder.follow(run.recipe.model_dump(mode="json", by_alias=True), sinks)
    run.on_phase = folder.at
    last, save_every = run.recipe.train.steps, run.recipe.train.save_every
    try:
        _tell(run, folder)
        if not prepare_values(run, folder, stop, state) or not _baseline(run, folder, stop, state):
            return False
        began = state
        # before the first step, or where a stopped run had not got to it
        state = _evaluate(run, folder, stop, state)
        if state is not began:
            _save(run, folder, state)
        while state.step < last and not stop.asked:
            step = state.step + 1
            refused = 0  # in a row
            _prove(run, folder, step)
            folder.set_status("training", step)
            try:
                record, groups = train_step(step, run)
            except NonFinite as fault:
                record, groups = _refused(run, folder, step, fault), fault.groups
                refused = state.refused + 1
            finally:
                _warn(run, folder, step)  # also where nothing was left to shrink
            state = _recorded(run, folder, state, record, groups, refused)
            state = _evaluate(run, folder, stop, state)
            best = run.recipe.train.keep.best and checkpoint.is_best(state)
            if best or stop.asked or step == last or step % save_every == 0:
                _save(run, folder, state)
        return state.step >= last and _evaluated(run, folder, state.step)
    finally:
        sinks.close()
        # nothing holds the folder, and with it its lock, any longer
        folder.curves, run.on_phase = None, Run.on_phase


def _tell(run: Run, folder: RunFolder) -> None:
    """What was settled and what was left out while the run was built."""
    for message in (*warnings(run.recipe), *run.notes):
        folder.event("note", message=message)
    for setting in chosen(run):
        folder.event("chosen", **dataclasses.asdict(setting))
    for message in run.warnings:
        folder.event("warning", message=message)
    limit = run.recipe.model.max_prompt_tokens
    for counts in run.counts:
        if counts.too_long:
            reason = f"longer than {limit} tokens, in {counts.source}"
            event = {"count": counts.too_long, "limit": limit, "source": counts.source, "reason": reason}
            folder.event("prompts_left_out", **event)


def prepare_values(run: Run, folder: RunFolder, stop: StopRequest, state: State) -> bool:
    """Values of prompts that an algorithm wants before the first step; resumable. False:
    stopped on request.
    """
    store = run.plan.values
    if store is None:
        return True
    recipe = run.recipe
    if store.settings.drop_unsolved:
        prompts = run.prompts.first()  # which of them stay decides the order of all draws
    else:
        draws = recipe.train.steps * recipe.rollout.prompts_per_step  # redraws are asked for as they come
        # whole blocks: a longer run then has the same values
        prompts = run.prompts.first(-(-draws // BLOCK) * BLOCK)
    folder.set_status("estimating values", state.step)
    with run.engine.serving(run.policy) as sampler:
        tick = partial(progress.told, "values of prompts under the reference", of=len(prompts))
        kept = folder.path / "values.jsonl"
        done = store.prepare(prompts, run.tools(sampler), kept, tick, lambda: stop.asked)
    if not done:
        return False
    left_out = run.prompts.skip(lambda p: store.knows(p) and not store.teaches(p))
    if left_out:
        reason = "no answer of the reference has a reward"
        if store.settings.drop_unsolved:
            reason = "the reference solves them never"
        folder.event("prompts_left_out", count=left_out, reason=reason)
    if left_out == len(run.prompts.prompts):
        what = "the reference solves no prompt"
        fix = "set algorithm.value_cache.drop_unsolved=false"
        if not any(store.rewards.values()):
            what = f"every reward of the pre-pass is missing{_first(run)}"
            fix = "mend the reward; logs/ have the whole traceback"
        raise DataError(what, where=recipe.where("algorithm.value_cache"), fix=fix)
    return True


def _first(run: Run) -> str:
    fault = run.reward.first_fault
    return f": {fault}" if fault else ""


def _baseline(run: Run, folder: RunFolder, stop: StopRequest, state: State) -> bool:
    """Is there anything to learn from, before the first step? If not, exit 5. False: stopped on request."""
    if state.step or not due(run.recipe, folder.rows("events.jsonl")):
        return True
    folder.set_status("looking for a signal", 0)
    baseline = measure(run, check_prompts(run), early=True, stop=lambda: stop.asked)
    if baseline is None:
        return False
    folder.event("baseline", **as_json(baseline))
    demand_signal(baseline, run.recipe)
    return True


def _refused(run: Run, folder: RunFolder, step: int, fault: NonFinite) -> StepRecord:
    """The record of a step whose loss was not finite: no parameter moved,
    and the next loss is scaled less.
    """
    run.optimizer.zero_grad()
    run.policy.loss_scale = max(1.0, run.policy.loss_scale / 2)
    folder.event("step_refused", step=step, reason=str(fault))
    return StepRecord(step, run.policy.version, skipped=str(fault))


def _recorded(
    run: Run, folder: RunFolder, state: State, record: StepRecord, groups: Sequence[Group], refused: int
) -> State:
    """The state after a step that is written down. Too many refused in a row end the run, its state saved."""
    decode = partial(run.policy.tokenizer.decode, skip_special_tokens=True)
    read = partial(run.policy.tokenizer.decode, skip_special_tokens=False)
    folder.record(record, samples(groups, run.recipe.log.completions_per_step, decode, read))
    state = dataclasses.replace(state, step=record.step, refused=refused, score=None, **_position(run))
    if refused < MAX_REFUSED:
        return state
    _save(run, folder, state)
    raise LgrpoError(
        f"{refused} steps in a row without a finite loss ({record.skipped}); no update was made from such a"
        " number",
        where=f"step {record.step} of {folder.path}",
        fix="look at the completions of that step; start again under another --name with a smaller optim.lr",
    )


def _warn(run: Run, folder: RunFolder, step: int) -> None:
    """Of what did not fit, and of what the engine found out."""
    for notices in (run.notices, getattr(run.engine, "notices", [])):
        for message in notices:
            folder.event("warning", step=step, message=message)
        notices.clear()


def _prove(run: Run, folder: RunFolder, step: int) -> None:
    """At the first two syncs of a process, and every so many steps: do the rollouts come
    from this policy? If not, exit 6.
    """
    proof, every = run.proof, run.recipe.safety.sync_proof_every
    if proof is None or (proof.count > 1 and step % every):
        if proof is not None and (step + 1) % every == 0:
            proof.remember()  # before this step's update
        return
    folder.set_status("proving the rollouts", step)
    tick = proving()
    with run.engine.serving(run.policy) as sampler:
        checks = proof(sampler, tick)
    tick(1.0)
    version = run.policy.version
    rows = [dataclasses.asdict(check) for check in checks]
    folder.event("proof", step=step, version=version, checks=rows)
    where = f"proof before step {step}, policy version {version}, engine {run.recipe.rollout.engine}"
    demand_passed(checks, where)


def _evaluate(run: Run, folder: RunFolder, stop: StopRequest, state: State) -> State:
    """Evaluate if it is due: before, every `eval_every` steps, after, and once only; keeps the best score."""
    steps, every = run.recipe.train.steps, run.recipe.train.eval_every
    due = state.step in (0, steps) or (every and state.step % every == 0)
    if not due or _evaluated(run, folder, state.step):
        return state
    folder.set_status("evaluating", state.step)
    kept = folder.path / "evals" / f"step-{state.step:06d}.jsonl.gz"
    began = time.monotonic()
    result = evaluate(run, state.step, lambda: stop.asked, kept)
    _warn(run, folder, state.step)
    if result is None:
        return state
    folder.evaluation(dataclasses.asdict(result) | {"seconds": time.monotonic() - began})
    write_report(folder.path)
    return checkpoint.improved(state, score_of(result, run.recipe.train.keep.metric))


def _evaluated(run: Run, folder: RunFolder, step: int) -> bool:
    return not run.eval_prompts or any(row.get("step") == step for row in folder.rows("evals.jsonl"))


def _position(run: Run) -> dict[str, Any]:
    return {
        "policy_version": run.policy.version,
        "prompts_drawn": run.prompts.drawn,
        "length_lambda": run.objective.length_lambda,
    }


def _save(run: Run, folder: RunFolder, state: State) -> None:
    folder.set_status("saving", state.step)
    began = time.monotonic()
    folder.sync()
    keep = run.recipe.train.keep
    own = {"optimizer": run.optimizer, "objective": run.objective, "plan": run.plan, "prompts": run.prompts}
    tensors = {name: part.state_dict() for name, part in own.items()}
    checkpoint.save(
        folder.path / "checkpoints", run.policy, tensors, state, keep_last=keep.last, keep_best=keep.best
    )
    folder.event("saved", step=state.step, seconds=time.monotonic() - began)


def _resume(run: Run, folder: RunFolder) -> State:
    """The newest whole checkpoint; corrupt ones are passed over and named. None at all: from the start."""
    root = folder.path / "checkpoints"
    checkpoint.repair(root, keep_best=run.recipe.train.keep.best)
    newest, warnings = checkpoint.find(root)
    for warning in warnings:
        instead = newest.name if newest else "the start"
        folder.event("warning", message=f"{warning}; using {instead} instead")
    if newest is None:
        folder.rewind(0, evaluated=False)
        folder.event("resumed", step=0)
        return State(0, 0, 0)
    state, tensors = checkpoint.load(newest, run.policy)
    run.optimizer.load_state_dict(tensors["optimizer"])
    run.objective.load_state_dict(tensors["objective"])
    run.plan.load_state_dict(tensors["plan"])
    run.prompts.load_state_dict(tensors.get("prompts", {"drawn": state.prompts_drawn}))
    # an evaluation whose score the state does not have was made after it was saved
    folder.rewind(state.step, evaluated=state.score is not None)
    folder.event("resumed", step=state.step)
    return state
