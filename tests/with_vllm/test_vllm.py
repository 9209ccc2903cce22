"""vLLM in this process, as on a CPU and as on CUDA: the contract of an engine, one copy of the weights, the
proofs with faults planted."""

import gc
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from like_cuda import LOST, SHAPES, shaped
from support import tiny_recipe

pytest.importorskip("vllm")
from lgrpo_lite.batch import for_scoring
from lgrpo_lite.engines import probe
from lgrpo_lite.engines.base import SamplingParams
from lgrpo_lite.engines.probe import demand_passed, proof_of
from lgrpo_lite.engines.selftest import stages, stir
from lgrpo_lite.errors import VerificationError
from lgrpo_lite.train.build import build

KINDS = {  # engine, weights, one copy; |Δlogp| to the trainer: mean and largest, nats a token
    "transformers": ("transformers", "fp32", True, 1e-5, 1e-3),
    "shared nf4": ("vllm", "nf4", True, 0.03, 2.0),
    "shared bf16": ("vllm", "bf16", True, 0.03, 2.0),
    "shared fp32": ("vllm", "fp32", True, 1e-5, 1e-3),
    "two copies nf4": ("vllm", "nf4", False, 0.03, 2.0),
    "two copies fp32": ("vllm", "fp32", False, 1e-5, 1e-3),
    "vllm-server": ("vllm-server", "fp32", False, 1e-5, 1e-3),
}


def recipe_of(kind: str, *more: str):
    engine, weights, share, *_ = KINDS[kind]
    own = [f"rollout.engine={engine}", f"model.weights={weights}", f"rollout.vllm.share_weights={share}"]
    return tiny_recipe(*own, "rollout.vllm.kv_cache_gb=0.1", "data.eval.limit=16", *more)


def engines():
    """(kind, shape): all tests of one in one process; those of the server where its other tests are."""
    for kind, (engine, *_) in KINDS.items():
        for shape in SHAPES if engine == "vllm" else (None,):
            name = f"{kind}, {shape}" if shape else kind
            group = "server" if engine == "vllm-server" else name
            yield pytest.param((kind, shape), id=name, marks=pytest.mark.xdist_group(group))


@pytest.fixture(scope="module", params=engines())
def run(request):
    """A run of every kind of engine, with an adapter that is not zero."""
    kind, shape = request.param
    server = [f"rollout.server.url={request.getfixturevalue('server_url')}"] if "server" in kind else []
    with shaped(shape) if shape else nullcontext():
        made = build(recipe_of(kind, *server))
        made.kind, made.shape = kind, shape
        stir(made.engine, made.policy, made.proof, seed=1)
        yield made
        made.engine.close()
        del made
        gc.collect()


@contextmanager
def at_temperature(run, temperature):
    before, run.policy.temperature = run.policy.temperature, temperature
    yield SamplingParams(temperature, run.recipe.model.max_new_tokens)
    run.policy.temperature = before


def scored(run, pairs):
    run.policy.model.eval()
    with torch.no_grad():
        return run.policy.logprobs(for_scoring(pairs)).logp


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_and_trainer_agree_and_the_base_is_another(run, temperature):
    with at_temperature(run, temperature) as sampling, run.engine.serving(run.policy) as sampler:
        answers = sampler.generate(run.eval_prompts, 8, sampling)
        pairs = [(p, c) for p, row in zip(run.eval_prompts, answers, strict=True) for c in row]
        said = for_scoring(pairs).sampler_logp
        apart = (scored(run, pairs) - said).abs()
        with run.policy.reference():
            from_base = (scored(run, pairs) - said).abs().mean()
    mean, largest = KINDS[run.kind][3:]
    assert apart.mean() < mean and apart.max() < largest
    assert from_base > 5 * apart.mean() and from_base > 0.05


def test_counts_order_versions_and_ends(run):
    with run.engine.serving(run.policy) as sampler:
        answers = sampler.generate(run.eval_prompts, 3, run.sampling)
        cut = sampler.generate(run.eval_prompts[:2], 2, SamplingParams(1.0, 2))
        greedy = sampler.generate(run.eval_prompts, 2, SamplingParams(0.0, 24))
        again = sampler.generate(run.eval_prompts[::-1], 1, SamplingParams(0.0, 24))[::-1]
    assert [len(row) for row in answers] == [3] * len(run.eval_prompts)
    for completion in (c for row in (*answers, *greedy) for c in row):
        assert completion.policy_version == run.policy.version
        assert len(completion.logprobs) == len(completion.token_ids) and completion.given == 0
        ends = [token in run.policy.eos_ids for token in completion.token_ids]
        assert sum(ends) == (completion.finish_reason == "stop") and ends[-1] == (
            completion.finish_reason == "stop"
        )
        assert "<|" not in completion.text
    assert {len(c.token_ids) for row in cut for c in row} == {2}
    assert all(a.token_ids == b.token_ids for a, b in greedy)
    same = [a[0].token_ids == b[0].token_ids for a, b in zip(greedy, again, strict=True)]
    assert sum(same) >= len(same) - 2  # 16-bit ties may fall otherwise in another batch


def test_a_stop_string_ends_an_answer_with_its_tokens_and_log_probs(run):
    """As `engines.answers` reads them, whatever vLLM's own decoding says and however late it stops."""
    stop, decode = ("=", "##"), run.policy.tokenizer.decode
    with run.engine.serving(run.policy) as sampler:
        answers = sampler.generate(run.eval_prompts, 4, SamplingParams(1.0, 24, stop=stop))
        greedy = sampler.generate(run.eval_prompts, 1, SamplingParams(0.0, 24, stop=stop))
        whole = sampler.generate(run.eval_prompts, 1, SamplingParams(0.0, 24))
    cut = [c for row in (*answers, *greedy) for c in row if c.token_ids[-1] not in run.policy.eos_ids]
    cut = [c for c in cut if len(c.token_ids) < 24]
    assert cut and all(c.finish_reason == "stop" for c in cut)
    for c in cut:
        assert len(c.logprobs) == len(c.token_ids)
        assert any(text in decode(c.token_ids) for text in stop)
        assert not any(text in decode(c.token_ids[:-1]) for text in stop)
    pairs = [(p, c) for p, row in zip(run.eval_prompts, answers, strict=True) for c in row]
    apart = (scored(run, pairs) - for_scoring(pairs).sampler_logp).abs()
    mean, largest = KINDS[run.kind][3:]
    assert apart.mean() < mean and apart.max() < largest
    same = [
        a[0].token_ids == b[0].token_ids[: len(a[0].token_ids)] for a, b in zip(greedy, whole, strict=True)
    ]
    assert sum(same) >= len(same) - 2  # 16-bit ties


def test_answers_go_on_from_a_prefix_and_count_it(run):
    prompts = run.eval_prompts[:3]
    prefixes = [(50, 51), (), tuple(range(48, 58))]
    with run.engine.serving(run.policy) as sampler:
        answers = sampler.generate(prompts, 2, SamplingParams(1.0, 10), prefixes)
    for row, prefix in zip(answers, prefixes, strict=True):
        for c in row:
            assert c.token_ids[: len(prefix)] == prefix and c.given == len(prefix)
            assert len(c.token_ids) <= 10 and len(c.logprobs) == len(c.token_ids) - len(prefix)
    assert [c.token_ids for c in answers[2]] == [prefixes[2]] * 2


def test_without_the_adapter_it_is_the_base(run):
    with run.engine.serving(run.policy) as sampler, sampler.reference(), run.policy.reference():
        answers = sampler.generate(run.eval_prompts, 4, run.sampling)
        pairs = [(p, c) for p, row in zip(run.eval_prompts, answers, strict=True) for c in row]
        apart = (scored(run, pairs) - for_scoring(pairs).sampler_logp).abs().mean()
    assert apart < KINDS[run.kind][3]


def test_the_same_seed_gives_the_same_answers(run):
    def sampled(seed):
        torch.manual_seed(seed)
        with run.engine.serving(run.policy) as sampler:
            return [c.token_ids for row in sampler.generate(run.eval_prompts, 4, run.sampling) for c in row]

    sampled(0)  # from here on the prefix cache is in one state
    assert sampled(1) == sampled(1) != sampled(2)


def test_base_weights_are_there_once(run):
    if KINDS[run.kind][0] != "vllm":
        pytest.skip("the engine has no weights of its own here")
    served = run.engine.served
    own = {p.untyped_storage().data_ptr() for n, p in run.policy.model.named_parameters() if "lora_" not in n}
    theirs = {p.untyped_storage().data_ptr() for n, p in served.named_parameters() if "lora_" not in n}
    assert own <= theirs if KINDS[run.kind][2] else not own & theirs
    assert run.engine.share_weights == KINDS[run.kind][2] and not run.engine.notes


def test_between_rollouts_the_cache_is_away_and_sampling_goes_on(run):
    """A CPU keeps it, and vLLM says why; not that requests are still on their way."""
    if run.shape is None:
        pytest.skip("another engine")
    greedy, engine = SamplingParams(0.0, 16), run.engine
    core = engine.llm.llm_engine.engine_core.engine_core
    worker = core.model_executor.driver_worker.worker

    def answers():
        with engine.serving(run.policy) as sampler:
            return [row[0].token_ids for row in sampler.generate(run.eval_prompts, 1, greedy)]

    before = answers()
    assert (core.batch_queue is None) == (run.shape == "as on a CPU")
    if run.shape == "as on CUDA":
        assert engine.releases and core.model_executor.sleeping_tags == {"kv_cache"} and not core.batch_queue
        assert worker.model_runner.kv_caches and all(
            bool((c == LOST).all()) for c in worker.model_runner.kv_caches
        )
    else:
        engine._pause()
        with pytest.raises(RuntimeError, match="discard is not supported on CPU"):
            engine.llm.release_kv_cache_memory()
    assert answers() == before and not engine.notices


def test_a_vllm_that_refuses_to_give_back_its_cache_keeps_it(run):
    """The one of a CPU refuses; whoever plans memory is told how much stays."""
    if run.shape != "as on a CPU":
        pytest.skip("this vLLM gives its cache back")
    engine, notes = run.engine, run.engine.notes
    engine.releases = engine._can_release()
    assert not engine.releases and "keeps its KV cache while training: " in engine.notes[-1]
    assert "not supported on CPU" in engine.notes[-1] and engine.cache_stays == 0
    engine.on_gpu = True
    assert engine.cache_stays == int(0.1 * 2**30)
    engine.on_gpu, engine.notes = False, notes
    with engine.serving(run.policy) as sampler:
        assert len(sampler.generate(run.eval_prompts, 1, run.sampling)) == len(run.eval_prompts)


def test_selftest_is_green(run):
    before = [p.detach().clone() for p in run.policy.trainable()]
    version, temperature = run.policy.version, run.policy.temperature
    shown = [(stage, c) for stage, checks in stages(run.engine, run.policy, run.proof) for c in checks]
    assert all(c.passed for _, c in shown), [(s, c) for s, c in shown if not c.passed]
    asked = {"stamp", "base weights", "adapter", "version", "temperature", "agreement", "base answers"}
    assert {c.name for _, c in shown} == asked | ({"prefix cache"} if run.engine.caches_prefixes else set())
    with torch.no_grad():
        for p, value in zip(run.policy.trainable(), before, strict=True):
            p.copy_(value)
    run.policy.temperature, run.policy.version = temperature, version + 10


# ------------------------------------------------------------------------------------------- planted faults


@contextmanager
def adapter_not_applied(run):
    run.engine._sync(run.policy)
    with patch.object(type(run.engine), "_sync", lambda self, policy: setattr(self, "_request", None)):
        yield
    run.engine._synced = None


@contextmanager
def last_versions_adapter(run):
    run.engine._sync(run.policy)
    moved(run)
    with patch.object(type(run.engine), "_sync", lambda self, policy: None):
        yield


@contextmanager
def one_name_and_no_reset(run):
    """Every version under the name and folder of the first, and the prefix cache never
    reset: giving it back would do that.
    """
    from vllm.lora.request import LoRARequest

    engine, folder = run.engine, run.engine.folder.path / "same"
    releases, engine.releases = engine.releases, False

    def sync(self, policy):
        if folder.exists():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        policy.save(folder)
        self._request = LoRARequest("same", 999, str(folder), load_inplace=True)
        self.llm.llm_engine.add_lora(self._request)
        self._request = LoRARequest("same", 999, str(folder))

    with patch.object(type(engine), "_sync", sync):
        with engine.serving(run.policy) as sampler:
            run.proof(sampler)
        moved(run)
        yield
    engine.llm.llm_engine.remove_lora(999)
    engine._synced = engine._request = None
    engine.releases = releases


@contextmanager
def another_temperature(run):
    from lgrpo_lite.engines.vllm_sampler import VllmSampler

    settings = VllmSampler._settings

    def hotter(self, n, sampling, given):
        return settings(self, n, replace(sampling, temperature=1.25 * sampling.temperature), given)

    with patch.object(VllmSampler, "_settings", hotter):
        yield


@contextmanager
def one_weight_changed(run):
    weight = next(
        p
        for n, p in run.engine.served.named_parameters()
        if n.endswith("layers.1.mlp.down_proj.base_layer.weight")
    )
    before = weight.data.view(-1)[77].clone()
    with torch.inference_mode():
        weight.data.view(-1)[77] = before ^ 1 if before.dtype == torch.uint8 else before * 2
        yield
        weight.data.view(-1)[77] = before


FAULTS = {
    "adapter": adapter_not_applied, "version": last_versions_adapter, "prefix cache": one_name_and_no_reset,
    "temperature": another_temperature, "base weights": one_weight_changed,
}  # fmt: skip


def moved(run):
    """The next version of the policy, clearly another one."""
    stirred = torch.Generator().manual_seed(run.policy.version)
    with torch.no_grad():
        for p in run.policy.trainable():
            p += 0.02 * torch.randn(p.shape, generator=stirred)
    run.policy.version += 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(run, fault, monkeypatch):
    if run.kind not in ("shared nf4", "shared fp32", "two copies nf4"):
        pytest.skip("planted where the engine is vLLM in this process")
    proof = proof_of(run.engine, run.policy, run.prompts.prompts, run.recipe)
    run.proof = proof
    with run.engine.serving(run.policy) as sampler:
        demand_passed(proof(sampler), "before the fault")
    # 1.25 as temperature lies near what a proof of so few tokens can tell, by the machine's rounding:
    # four times as many
    monkeypatch.setattr(probe, "ANSWERS", 4 * probe.ANSWERS)
    with FAULTS[fault](run), run.engine.serving(run.policy) as sampler:
        checks = proof(sampler)
    found = {c.name: c.found for c in checks}
    assert fault in {c.name for c in checks if not c.passed}, found[fault]
    if fault == "version":  # a sync that was left out shows on every answer too
        assert not next(c.passed for c in checks if c.name == "stamp")
    with pytest.raises(VerificationError, match=fault) as error:
        demand_passed(checks, "here")
    assert error.value.exit_code == 6
    run.proof = proof_of(run.engine, run.policy, run.prompts.prompts, run.recipe)
    with run.engine.serving(run.policy) as sampler:
        demand_passed(run.proof(sampler), "after the fault")
