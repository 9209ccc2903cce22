"""The engine `unsloth` without a GPU: what it calls is there, faults are named, and its
trainer runs on Unsloth's own loader.

Needs the venv that install.sh beside this file makes. With a GPU, vLLM and `-m gpu` the whole contract runs.
"""

import ast
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
import torch
from support import tiny_recipe

try:  # importing it would patch transformers for all tests of this process
    INSTALLED = metadata.distribution("unsloth").locate_file("")
except metadata.PackageNotFoundError:
    pytest.skip("needs Unsloth: tests/with_unsloth/install.sh", allow_module_level=True)

import huggingface_hub.constants as hub

from lgrpo_lite.batch import for_scoring
from lgrpo_lite.engines import unsloth as engine
from lgrpo_lite.engines.base import SamplingParams
from lgrpo_lite.errors import ConfigError, EnvironmentFault
from lgrpo_lite.policy.load import config_of, locate
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.policy.prove import probe, prove
from lgrpo_lite.recipe.schema import Model
from lgrpo_lite.types import Completion, Prompt

SOURCES = {"newest": Path(str(INSTALLED)), "floor": Path(sys.prefix) / "floor"}
STACK = {"vllm": "0.32.0", "vllm-bnb-plugin": "0.0.3", "transformers": "5.17.0", "trl": "1.15.0", "unsloth": "2026.10.7",
         "unsloth-zoo": "2026.10.7", "torch": "2.13.0+cu130", "bitsandbytes": "0.50.2"}  # fmt: skip


@pytest.fixture
def stack(tmp_path, monkeypatch):
    """Says which versions are installed, by metadata on disk in front of the real one. None: not installed."""

    def plant(**versions):
        found = [d.metadata["Name"] for d in metadata.distributions()]
        for name, version in (STACK | {k.replace("_", "-"): v for k, v in versions.items()}).items():
            if version is None:
                assert name not in found
                continue
            folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return plant


def recipe_of(*more: str, weights: str = "nf4"):
    return tiny_recipe("rollout.engine=unsloth", f"model.weights={weights}", *more)


# ------------------------------------------------------------------------------------------- the source


@cache
def tree(which: str, file: str) -> ast.Module:
    return ast.parse((SOURCES[which] / file).read_text("utf-8"))


def parameters(which: str, file: str, function: str, owner: str | None = None) -> set[str]:
    """Names of a function's parameters, `**` among them where it takes any."""
    body = tree(which, file).body
    if owner:
        body = next(n for n in body if isinstance(n, ast.ClassDef) and n.name == owner).body
    found = next(n for n in body if isinstance(n, ast.FunctionDef) and n.name == function).args
    return {a.arg for a in (*found.args, *found.kwonlyargs)} | ({"**"} if found.kwarg else set())


def calls(which: str, file: str, name: str) -> set[str]:
    """Keywords that a function of this name is called with somewhere in the file."""
    found = [n for n in ast.walk(tree(which, file)) if isinstance(n, ast.Call)]
    return {
        k.arg
        for n in found
        if getattr(n.func, "attr", getattr(n.func, "id", "")) == name
        for k in n.keywords
        if k.arg
    }


def assigned(which: str, file: str) -> set[str]:
    """Attributes the file sets on a variable `model`."""
    targets = [t for n in ast.walk(tree(which, file)) if isinstance(n, ast.Assign) for t in n.targets]
    return {
        t.attr
        for t in targets
        if isinstance(t, ast.Attribute) and isinstance(t.value, ast.Name) and t.value.id == "model"
    }


@pytest.mark.parametrize("which", SOURCES)
def test_from_pretrained_takes_what_it_is_given(which, stack):
    """By name, or handed on by name: to the models it has kernels for, and from there to vLLM."""
    stack()
    recipe = recipe_of("rollout.vllm.max_sequences=8")
    made = engine.UnslothEngine(recipe)
    options = set(made._options("folder", config_of(recipe.model))) | {"gpu_memory_utilization"}
    public = parameters(which, "unsloth/models/loader.py", "from_pretrained", "FastLanguageModel")
    inner = parameters(which, "unsloth/models/llama.py", "from_pretrained", "FastLlamaModel")
    served = parameters(which, "unsloth_zoo/vllm_utils.py", "load_vllm")
    assert "**" in public & inner and options <= public | inner | served
    assert options - public == {"unsloth_vllm_standby", "max_num_seqs", "enforce_eager", "max_logprobs"}
    assert "getfullargspec(load_vllm).args" in (SOURCES[which] / "unsloth/models/llama.py").read_text("utf-8")
    made.close()


@pytest.mark.parametrize("which", SOURCES)
def test_the_adapter_goes_through_known_names(which):
    taken = parameters(which, "unsloth/models/llama.py", "get_peft_model", "FastLlamaModel")
    assert set(engine._adapter(recipe_of())) <= taken
    assert {"save_directory", "load_tensors"} <= parameters(which, "unsloth_zoo/vllm_utils.py", "load_lora")
    assert {"lora_tensors", "lora_config"} <= calls(which, "unsloth_zoo/vllm_utils.py", "LoRARequest")
    fields = [
        n.target.id
        for n in ast.walk(tree(which, "unsloth_zoo/vllm_lora_request.py"))
        if isinstance(n, ast.AnnAssign)
    ]
    assert {"lora_int_id", "lora_tensors", "lora_config"} <= set(fields)
    assert "vllm_engine" in assigned(which, "unsloth/models/llama.py")
    assert {"vllm_engine", "load_lora"} <= assigned(which, "unsloth/models/_utils.py")


@pytest.mark.parametrize("which", SOURCES)
def test_every_switch_is_read(which):
    text = "".join(
        (SOURCES[which] / f).read_text("utf-8")
        for f in ("unsloth/models/_utils.py", "unsloth_zoo/vllm_utils.py")
    )
    text += (SOURCES[which] / "unsloth_zoo/compiler.py").read_text("utf-8")
    own = {n for n in engine.ENVIRONMENT if n.startswith("UNSLOTH")} | {
        "UNSLOTH_COMPILE_LOCATION", "UNSLOTH_VLLM_STANDBY_UTIL_OVERRIDE",
    }  # fmt: skip
    assert len(own) == 5 and {n for n in own if n not in text} == set()


@pytest.mark.parametrize("which", SOURCES)
def test_log_probs_are_those_of_the_temperature(which):
    load = next(
        n for n in tree(which, "unsloth_zoo/vllm_utils.py").body if getattr(n, "name", "") == "load_vllm"
    )
    modes = [
        k.value
        for n in ast.walk(load)
        if isinstance(n, ast.Call)
        for k in n.keywords
        if k.arg == "logprobs_mode"
    ]
    assert [ast.unparse(m) for m in modes] == ["'processed_logprobs' if training else 'raw_logprobs'"]
    defaults = dict(zip(reversed(load.args.args), reversed(load.args.defaults), strict=False))
    training = next(d for a, d in defaults.items() if a.arg == "training")
    assert isinstance(training, ast.Constant) and training.value is True


# ------------------------------------------------------------------------------------------- faults

VERSIONS = [
    ({"unsloth": "2026.9.9"}, "unsloth 2026.9.9 is too old: this engine takes unsloth>=2026.10.7,<2026.11"),
    ({"unsloth": "2026.11.1"}, "unsloth 2026.11.1 is too new"),
    ({"unsloth_zoo": "2026.10.6"}, "unsloth-zoo 2026.10.6 is too old"),
    ({"vllm": "0.28.0"}, "vllm 0.28.0 is too old: this engine takes vllm>=0.32,<0.33"),
    ({"vllm": "0.33.0"}, "vllm 0.33.0 is too new"),
    ({"vllm": None}, "vllm is not installed: this engine takes vllm>=0.32,<0.33"),
    ({"vllm_bnb_plugin": None}, "vllm-bnb-plugin is not installed"),
    ({"trl": "1.16.0"}, "trl 1.16.0 is too new"),
    ({"transformers": "5.18.0"}, "transformers 5.18.0 is too new"),
    ({"torch": "2.15.0"}, "torch 2.15.0 is too new"),
]


@pytest.mark.parametrize(("versions", "named"), VERSIONS, ids=[n.partition(":")[0] for _, n in VERSIONS])
def test_a_package_outside_its_range_is_named(stack, versions, named):
    stack(**versions)
    with pytest.raises(EnvironmentFault) as error:
        engine.UnslothEngine(recipe_of())
    assert error.value.exit_code == 3 and error.value.what.startswith(named)
    assert "lgrpo-lite[unsloth]" in error.value.fix


def test_the_tested_versions_pass_and_the_plugin_is_for_4_bits(stack):
    stack(vllm_bnb_plugin=None)
    engine.UnslothEngine(recipe_of(weights="bf16")).close()


@pytest.mark.parametrize(
    ("name", "value", "fault", "says"),
    [
        ("WORLD_SIZE", "2", ConfigError, "vllm-server"),
        (
            "PYTORCH_CUDA_ALLOC_CONF",
            "max_split_size_mb:64,expandable_segments:True",
            EnvironmentFault,
            "unset",
        ),
        ("PYTORCH_ALLOC_CONF", "expandable_segments:True", EnvironmentFault, "unset PYTORCH_ALLOC_CONF"),
    ],
)
def test_a_process_it_cannot_live_in(stack, monkeypatch, name, value, fault, says):
    stack()
    monkeypatch.setenv(name, value)
    with pytest.raises(fault, match=says):
        engine.UnslothEngine(recipe_of())


def test_a_pinned_revision_is_the_folder_that_is_loaded(tmp_path, monkeypatch):
    """Unsloth loads the newest revision whatever it is told; the Hub's cache is on disk here."""
    old, new = "a" * 40, "b" * 40
    cached = tmp_path / "models--some--model"
    for revision in (old, new):
        (cached / "snapshots" / revision).mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(new)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    found = [Path(engine.checkpoint(Model(id="some/model", revision=r))).name for r in (old, new, None)]
    assert found == [old, new, new]
    assert engine.checkpoint(Model(id="builtin:tiny-math")) == locate("builtin:tiny-math")
    for gone in (Model(id="some/model", revision="c" * 40), Model(id="no/such")):
        with pytest.raises(ConfigError, match="cannot load") as error:
            engine.checkpoint(gone, "recipe.yaml:3")
        assert error.value.where == "recipe.yaml:3"


HERE = """
import sys
sys.path.insert(0, sys.argv[1])
from lgrpo_lite.engines.base import open_engine
from lgrpo_lite.errors import LgrpoError
from lgrpo_lite.recipe.read import load_recipe
from lgrpo_lite.checks.check import check
recipe = check(load_recipe("tiny-math", ["rollout.engine=unsloth", "model.weights=nf4"]))
engine = open_engine(recipe)
try:
    engine.network(recipe)
except LgrpoError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def test_without_a_gpu_it_says_so_and_keeps_quiet_otherwise(stack, tmp_path):
    """Imported for real, after transformers: nothing on standard output, no warning about
    the order, no file left behind.
    """
    stack()
    here = tmp_path / "here"
    here.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", HERE, str(tmp_path)], capture_output=True, text=True, cwd=here
    )
    assert done.returncode == 3, done.stderr
    assert "error: Unsloth cannot serve here" in done.stderr and "needs a GPU" in done.stderr
    assert "no GPU found" in done.stderr and "should be imported before" not in done.stderr
    assert done.stdout == "" and not list(here.iterdir())


# ------------------------------------------------------------------------------------------- its loader, on this CPU


@pytest.fixture(scope="module", params=["bf16", "nf4"])
def loaded(request):
    """Recipe and network by Unsloth's own functions, computing in float32; without a GPU it has no vLLM."""
    if torch.cuda.is_available():
        pytest.skip("Unsloth's loader for CPUs")
    from unsloth import FastLanguageModel

    recipe = recipe_of(weights=request.param)
    model, _ = FastLanguageModel.from_pretrained(
        locate(recipe.model.id),
        dtype=torch.float32,
        load_in_4bit=request.param == "nf4",
        use_gradient_checkpointing=False,
    )
    assert any(hasattr(p, "quant_state") for p in model.parameters()) == (request.param == "nf4")
    return recipe, FastLanguageModel.get_peft_model(model, **engine._adapter(recipe))


def test_a_model_without_vllm_is_not_taken(loaded):
    with pytest.raises(EnvironmentFault, match="without vLLM") as error:
        engine.engine_of(loaded[1].get_base_model(), "recipe.yaml:3")
    assert error.value.exit_code == 3


def test_the_trainer_stands_on_its_network(loaded):
    """The same adapter, float32, from the same seed; log-probs and gradients of the
    policy that loads its own weights.
    """
    recipe, net = loaded
    weights = "fp32" if recipe.model.weights == "bf16" else "nf4"
    plain = Policy.load(tiny_recipe(f"model.weights={weights}"))
    policy = Policy.load(recipe, net)
    assert {p.dtype for p in policy.trainable()} == {torch.float32} and policy.dtype == torch.float32
    own, theirs = (dict(p.model.named_parameters()) for p in (plain, policy))
    trained = [n for n, p in own.items() if p.requires_grad]
    assert trained == [n for n, p in theirs.items() if p.requires_grad]
    assert all(torch.equal(own[n], theirs[n]) for n in trained)
    assert prove(policy, recipe) == () and policy.eos_ids == plain.eos_ids
    found = []
    for p in (plain, policy):
        logp = p.logprobs(probe(258)).logp
        logp.sum().backward()
        found.append((logp.detach(), torch.cat([q.grad.flatten() for q in p.trainable()])))
    (logp, grad), (their_logp, their_grad) = found
    torch.testing.assert_close(their_logp, logp, rtol=0, atol=1e-4)
    assert (their_grad - grad).norm() < 1e-4 * grad.norm()


# ------------------------------------------------------------------------------------------- with a GPU


@pytest.fixture(scope="module")
def run():
    """One a process: vLLM's allocator for sleeping can be had once."""
    from lgrpo_lite.train.build import build

    made = build(recipe_of("rollout.vllm.kv_cache_gb=0.5", "rollout.temperature=0.7", "data.eval.limit=16"))
    yield made
    made.engine.close()


on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def apart(run, pairs: list[tuple[Prompt, Completion]]) -> torch.Tensor:
    batch = for_scoring(pairs)
    run.policy.model.eval()
    with torch.no_grad():
        logp = run.policy.logprobs(batch).logp
    run.policy.model.train()
    return (logp - batch.sampler_logp).abs()


class TestOnAGpu:
    pytestmark = on_gpu

    def test_its_rollouts_are_proven(self, run):
        from lgrpo_lite.engines.probe import demand_passed
        from lgrpo_lite.engines.selftest import stages

        own = {p.untyped_storage().data_ptr() for p in run.policy.model.parameters() if not p.requires_grad}
        served = run.engine._vllm.apply_model(lambda module: module)[0]
        assert own <= {p.untyped_storage().data_ptr() for p in served.parameters()}
        assert {p.dtype for p in run.policy.trainable()} == {torch.float32}
        assert run.policy.layouts == ("rows",)
        temperature = run.policy.temperature
        for stage, checks in stages(run.engine, run.policy, run.proof):
            demand_passed(checks, stage)
        run.policy.temperature = temperature

    def test_counts_versions_ends_prefixes_and_the_base(self, run):
        before = [p.detach().clone() for p in run.policy.trainable()]
        prefix = [(50, 51)] * len(run.eval_prompts)
        with run.engine.serving(run.policy) as sampler:
            answers = sampler.generate(run.eval_prompts, 3, run.sampling)
            begun = sampler.generate(run.eval_prompts, 2, SamplingParams(1.0, 10), prefix)
            with sampler.reference():
                base = sampler.generate(run.eval_prompts, 3, run.sampling)
        assert all(torch.equal(a, b) for a, b in zip(before, run.policy.trainable(), strict=True))
        assert [len(row) for row in answers] == [3] * len(run.eval_prompts)
        assert all(
            c.token_ids[:2] == (50, 51) and c.given == 2 and len(c.token_ids) <= 10
            for row in begun
            for c in row
        )
        pairs = [(p, c) for p, row in zip(run.eval_prompts, answers, strict=True) for c in row]
        assert {c.policy_version for _, c in pairs} == {run.policy.version}
        for _, c in pairs:
            assert (c.token_ids[-1] in run.policy.eos_ids) == (c.finish_reason == "stop") and len(
                c.logprobs
            ) == len(c.token_ids)
        assert apart(run, pairs).mean() < 0.1
        with run.policy.reference():
            from_base = [(p, c) for p, row in zip(run.eval_prompts, base, strict=True) for c in row]
            assert apart(run, from_base).mean() < 0.1

    def test_memory_comes_back(self, run):
        with run.engine.serving(run.policy):
            awake, _ = torch.cuda.mem_get_info()
        asleep, _ = torch.cuda.mem_get_info()
        assert run.engine.notes == () and asleep - awake > 0.4 * 2**30

    def test_it_trains(self, run, tmp_path):
        """A process of its own, 16-bit weights."""
        settings = [
            "rollout.engine=unsloth",
            "model.weights=bf16",
            "train.steps=3",
            "rollout.vllm.kv_cache_gb=0.5",
        ]
        command = [sys.executable, "-m", "lgrpo_lite", "recipe", "tiny-math", *settings]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
