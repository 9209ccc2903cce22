"""λ-GRPO (arXiv:2510.06870) as one straight loop, for readers who learn from loops.

    python docs/unrolled.py [STEPS]

The parts that are no reinforcement learning are the library's: the policy (a base model with an adapter),
the engine that samples, the rewards, the order of prompts. All that is λ-GRPO stands here in full:
advantages, λ's weights, the loss, both updates. `train/step.py` and `objective/` do the same for every
algorithm, in micro-batches and with all that can go wrong; a test holds the two together to the last
digits (tests/test_unrolled.py).

Shapes: P prompts of a step, G answers of each, T tokens of an answer.
"""

import math
import statistics
import sys

import torch

from lgrpo_lite import build, check, load_recipe
from lgrpo_lite.batch import for_scoring
from lgrpo_lite.engines.base import SamplingParams

SETTINGS = ["algorithm.use=length_preference", "data.eval.limit=64"]


def advantages(rewards):
    """A_i = (R_i - mean R)/(std R + 1e-4), inside one group of G answers."""
    mean = statistics.fmean(rewards)
    std = statistics.stdev(rewards)
    return [(reward - mean) / (std + 1e-4) for reward in rewards]


def preference(lam, lengths, r):
    """f_i = G softmax(h_i^λ): how much an answer's tokens weigh, by its length alone. λ = 0: f = 1 for all.

    h = 1 + r z, z the standardised length. Differentiable in λ; float64, since ∂f/∂λ is a small difference.
    """
    lengths = torch.tensor(lengths, dtype=torch.float64)
    z = (lengths - lengths.mean()) / (lengths.std(correction=0) + 1e-6)
    h = 1 + r * z
    return len(lengths) * torch.softmax(h**lam, dim=0)


def learning_rate(step, steps, top, warmup):
    """Linear warm-up, then linearly down to 0 after the last step."""
    if step <= warmup:
        return top * step / (warmup + 1)
    return top * (1 - (step - 1 - warmup) / (steps - warmup))


def main(steps=100, settings=()):
    # ---------------------------------------------------------------- what is the library's
    recipe = check(load_recipe("tiny-math", [*SETTINGS, f"train.steps={steps}", *settings]))
    run = build(recipe)
    policy, engine, reward, prompts = run.policy, run.engine, run.reward, run.prompts
    P, G = recipe.rollout.prompts_per_step, recipe.rollout.group_size
    sampling = SamplingParams(temperature=1.0, max_new_tokens=recipe.model.max_new_tokens)

    # ---------------------------------------------------------------- what is trained: the adapter, and λ
    adapter = policy.trainable()
    adamw = torch.optim.AdamW(adapter, lr=recipe.optim.lr, betas=recipe.optim.betas, weight_decay=0.0)
    chosen = recipe.algorithm.length_preference
    lam = torch.tensor(chosen.lambda_init, dtype=torch.float64, requires_grad=True)
    history = []

    for step in range(1, steps + 1):
        adamw.param_groups[0]["lr"] = learning_rate(step, steps, recipe.optim.lr, recipe.optim.warmup_steps)

        # 1. Sample G answers to each of P questions. The adapter goes to the engine on entry.
        questions = prompts.draw(P)
        with engine.serving(policy) as sampler:
            answers = sampler.generate(questions, G, sampling)  # [P][G]

        # 2. Score them. A reward that failed is missing, never 0: its answer would leave the group.
        groups = reward.group(questions, answers)
        values = [[rollout.reward for rollout in group.rollouts] for group in groups]

        # 3. Every token's term is divided by the tokens of its group and by P: a mean inside each group, then
        # over groups.
        #    An answer's advantage and weight are those of all its tokens.
        loss_of_step = 0.0
        gradient_of_lam = 0.0
        for group, rewards in zip(groups, values, strict=True):
            lengths = [len(rollout.completion.token_ids) for rollout in group.rollouts]
            credit = advantages(rewards)
            weight = preference(lam, lengths, chosen.r)  # f, [G]
            share = 1 / (P * sum(lengths))
            loss = torch.zeros((), dtype=torch.float64)
            for i, rollout in enumerate(group.rollouts):
                if credit[i] == 0:
                    continue  # no gradient: all answers of the group have the same reward
                # 4. Log-probs of the answer's tokens under the policy, with gradient.
                batch = for_scoring([(rollout.prompt, rollout.completion)])
                logp = policy.logprobs(batch).logp  # [T]
                old = logp.detach()  # one update a batch: the policy that sampled is the policy, so ρ = 1
                ratio = (logp - old).exp()
                gain = torch.minimum(ratio * credit[i], ratio.clamp(0.8, 1.2) * credit[i])  # PPO's clip, [T]
                # 5. The engine's numerics against the trainer's: a truncated importance weight, here about 1.
                sampled = torch.tensor(rollout.completion.logprobs)
                gain = gain * (old - sampled).exp().clamp(max=2.0)
                loss = loss - (share * weight[i] * gain).sum()
            # 6. One backward pass gives the adapter's gradient and λ's.
            if loss.requires_grad:
                loss.backward()
            loss_of_step += loss.item()

        # 7. AdamW moves the adapter, its gradient clipped; plain SGD moves λ, inside its bounds.
        norm = torch.nn.utils.clip_grad_norm_(adapter, recipe.optim.max_grad_norm).item()
        adamw.step()
        adamw.zero_grad()
        if lam.grad is not None:
            gradient_of_lam = lam.grad.item()
            with torch.no_grad():
                lam -= chosen.lr * lam.grad
                lam.clamp_(*chosen.clamp)
            lam.grad = None
        policy.version += 1  # the engine asks by it whether its adapter is stale

        every = [value for row in values for value in row]
        history.append({
            "reward": statistics.fmean(every), "loss": loss_of_step, "grad_norm": norm,
            "lambda": lam.item(), "lambda_grad": gradient_of_lam,
        })  # fmt: skip
        assert math.isfinite(loss_of_step)
        print(
            f"step {step:3}  reward {history[-1]['reward']:.3f}  loss {loss_of_step:+.4f}  λ"
            f" {lam.item():+.4f}"
        )

    reward.close()
    engine.close()
    return policy, history


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
