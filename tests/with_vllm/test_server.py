"""The engine `vllm-server` against a real vLLM on loopback."""

import math
import shlex
from collections import Counter

import pytest

pytest.importorskip("vllm.version")

import torch
from support import tiny_recipe

from lgrpo_lite.batch import for_scoring
from lgrpo_lite.engines.base import SamplingParams, open_engine
from lgrpo_lite.engines.http import Connection, launch_line
from lgrpo_lite.errors import EnvironmentFault
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.train.build import eval_prompts

pytestmark = pytest.mark.xdist_group("server")
SAME = 1e-4  # nats a token: float32 on both sides; 1e-5 was seen


def server_recipe(url, *overrides):
    return tiny_recipe("rollout.engine=vllm-server", f"rollout.server.url={url}", *overrides)


def move(policy, seed=1):
    """An adapter that is not zero."""
    torch.manual_seed(seed)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)


def moved_policy(*overrides, seed=1):
    policy = Policy.load(server_recipe("http://127.0.0.1:1", *overrides))
    move(policy, seed)
    return policy


@torch.no_grad()
def apart(policy, prompts, answers):
    """Largest |log-prob of the sampler - of the trainer| over all tokens."""
    batch = for_scoring([(p, c) for p, row in zip(prompts, answers, strict=True) for c in row])
    return (policy.logprobs(batch).logp - batch.sampler_logp).abs().max().item()


@pytest.fixture(scope="module")
def engine(server_url):
    engine = open_engine(server_recipe(server_url))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def policy():
    return moved_policy()


@pytest.fixture(scope="module")
def prompts(policy):
    return eval_prompts(server_recipe("http://127.0.0.1:1"), policy)


def served(url) -> dict[str, str]:
    """Adapters on the server: name -> path."""
    _, body = Connection(server_recipe(url)).ask("/v1/models")
    return {card["id"]: card["root"] for card in body["data"] if card["parent"]}


# ------------------------------------------------------------------------------------------- sampling


def test_counts_versions_and_ends(engine, policy, prompts):
    policy.version = 7
    with engine.serving(policy) as sampler:
        answers = sampler.generate(prompts, 3, SamplingParams(1.0, 48))
        cut = sampler.generate(prompts[:2], 1, SamplingParams(1.0, 2))
    policy.version = 0
    assert [len(a) for a in answers] == [3] * len(prompts)
    for completion in (c for a in answers for c in a):
        assert completion.policy_version == 7 and len(completion.logprobs) == len(completion.token_ids)
        ends = [t in policy.eos_ids for t in completion.token_ids]
        assert sum(ends) == (completion.finish_reason == "stop") and ends[-1] == (
            completion.finish_reason == "stop"
        )
        assert "<|" not in completion.text
    assert "stop" in {c.finish_reason for a in answers for c in a}
    assert {c.finish_reason for a in cut for c in a} == {"length"}


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_probs_are_the_trainers(engine, prompts, temperature):
    policy = moved_policy(f"rollout.temperature={temperature}")
    with engine.serving(policy) as sampler:
        answers = sampler.generate(prompts, 4, SamplingParams(temperature, 48))
        with sampler.reference():
            base = sampler.generate(prompts, 4, SamplingParams(temperature, 48))
        again = sampler.generate(prompts, 1, SamplingParams(temperature, 48))
    assert apart(policy, prompts, answers) < SAME and apart(policy, prompts, again) < SAME
    assert apart(policy, prompts, base) > 100 * SAME
    with policy.reference():
        assert apart(policy, prompts, base) < SAME


def test_a_changed_adapter_is_served_at_the_next_entry(engine, prompts):
    policy, before = moved_policy(), moved_policy()
    with engine.serving(policy) as sampler:
        sampler.generate(prompts, 1, SamplingParams(1.0, 16))
    move(policy, seed=2)
    with engine.serving(policy) as sampler:
        answers = sampler.generate(prompts, 4, SamplingParams(1.0, 16))
    assert apart(policy, prompts, answers) < SAME < 100 * SAME < apart(before, prompts, answers)


def test_an_adapter_that_did_not_change_is_published_once(engine, policy, server_url):
    with engine.serving(policy):
        first = served(server_url)
    with engine.serving(policy):
        assert served(server_url) == first and len(first) == 1
    move(policy, seed=3)
    with engine.serving(policy):
        second = served(server_url)
    assert len(second) == 1 and second != first
    assert [str(p) for p in engine.folder.path.iterdir()] == list(second.values())


def test_a_server_that_forgot_the_adapter_gets_it_again(engine, policy, prompts, server_url):
    with engine.serving(policy):
        [name] = served(server_url)
    Connection(server_recipe(server_url)).ask("/v1/unload_lora_adapter", {"lora_name": name})
    with engine.serving(policy) as sampler:
        answers = sampler.generate(prompts, 1, SamplingParams(1.0, 16))
    assert apart(policy, prompts, answers) < SAME


def test_the_same_seed_gives_the_same_answers(engine, policy, prompts):
    drawn = []
    with engine.serving(policy) as sampler:
        for seed in (5, 5, 6):
            torch.manual_seed(seed)
            answers = sampler.generate(prompts, 4, SamplingParams(1.0, 16, salt=f"{seed}"))
            drawn.append([[c.token_ids for c in row] for row in answers])
    assert drawn[0] == drawn[1] != drawn[2]
    assert any(len(set(row)) > 1 for row in drawn[0])


def test_answers_of_one_request_are_independent_draws(engine, policy, prompts):
    """χ² of first tokens against their own probabilities: one request seeds its answers one after the other."""
    torch.manual_seed(0)
    with engine.serving(policy) as sampler:
        rows = sampler.generate(prompts[:4], 300, SamplingParams(2.0, 1))
    excess = spread = 0.0
    for row in rows:
        expected = {c.token_ids[0]: len(row) * math.exp(c.logprobs[0]) for c in row}
        found = Counter(c.token_ids[0] for c in row)
        common = [t for t, e in expected.items() if e >= 5]
        excess += sum(
            (found[t] - expected[t]) ** 2 / expected[t] - (1 - expected[t] / len(row)) for t in common
        )
        spread += 2 * len(common)
    assert abs(excess) < 4 * math.sqrt(spread)


def test_greedy_answers_come_as_often_as_asked(engine, policy, prompts):
    with engine.serving(policy) as sampler:
        answers = sampler.generate(prompts, 3, SamplingParams(0.0, 16))
        alone = [sampler.generate([p], 1, SamplingParams(0.0, 16))[0] for p in prompts]
    assert [{c.token_ids for c in row} for row in answers] == [{row[0].token_ids} for row in alone]
    assert {len(row) for row in answers} == {3}


def test_it_goes_on_from_prefixes_of_different_lengths(engine, policy, prompts):
    greedy = SamplingParams(0.0, 16)
    with engine.serving(policy) as sampler:
        whole = [row[0] for row in sampler.generate(prompts, 1, greedy)]
        shown = [c.token_ids[: i % 5] for i, c in enumerate(whole)]
        again = [row[0] for row in sampler.generate(prompts, 1, greedy, shown)]
    for c, prefix, full in zip(again, shown, whole, strict=True):
        assert c.token_ids == full.token_ids and c.text == full.text and c.finish_reason == full.finish_reason
        assert c.given == len(prefix) and len(c.logprobs) == len(c.token_ids) - c.given
        torch.testing.assert_close(c.logprobs, full.logprobs[c.given :], rtol=0, atol=SAME)


@pytest.mark.parametrize(("limit", "given", "sampled"), [(6, 6, 0), (6, 9, 0), (6, 5, 1), (6, 0, 6)])
def test_a_prefix_counts_towards_the_limit(engine, policy, prompts, limit, given, sampled):
    prefix = policy.tokenizer("999999999", add_special_tokens=False)["input_ids"][:given]
    with engine.serving(policy) as sampler:
        first, other = sampler.generate(prompts[:2], 2, SamplingParams(1.0, limit), [prefix, ()])
    for c in first:
        assert c.given == min(given, limit) and len(c.logprobs) == len(c.token_ids) - c.given <= sampled
        assert c.text.startswith("9" * c.given)
    assert all(c.given == 0 and c.token_ids for c in other)


def test_closing_takes_the_adapter_off_the_server(server_url, policy):
    engine = open_engine(server_recipe(server_url))
    with engine.serving(policy):
        [name] = [name for name in served(server_url) if name.startswith(engine.folder.path.name)]
    engine.close()
    engine.close()
    assert name not in served(server_url) and not engine.folder.path.exists()


def test_a_rank_above_the_servers_is_refused_with_its_words(server_url):
    large = server_recipe(server_url, "model.lora.rank=32")
    engine, policy = open_engine(large), Policy.load(large)
    with (
        pytest.raises(EnvironmentFault, match="32 is greater than max_lora_rank 16") as fault,
        engine.serving(policy),
    ):
        pass
    assert "--max-lora-rank 32" in fault.value.fix and list(engine.folder.path.iterdir()) == []
    engine.close()


@pytest.mark.parametrize(
    "extra", [(), ("model.weights=nf4", "rollout.server.model=m", "rollout.server.api_key_env=K")]
)
def test_vllm_knows_every_flag_of_that_command(extra):
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    words = shlex.split(launch_line(server_recipe("http://127.0.0.1:8010", "model.lora.rank=20", *extra)))
    asked = make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", words[3], *words[4:]])
    assert words[:3] == ["VLLM_ALLOW_RUNTIME_LORA_UPDATING=1", "vllm", "serve"]
    assert asked.enable_lora and asked.max_lora_rank == 32 and asked.max_loras == 2 and asked.port == 8010
    assert asked.logprobs_mode == "processed_logprobs" and asked.quantization == (
        "bitsandbytes" if extra else None
    )
