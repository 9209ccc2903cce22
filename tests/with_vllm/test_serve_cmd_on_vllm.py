"""What `serve-cmd` prints, started: vLLM serves the export as the policy answers."""

import json
import shlex
import urllib.request

import pytest

pytest.importorskip("vllm.version")

import torch
from support import lgrpo

from lgrpo_lite.engines.base import SamplingParams
from lgrpo_lite.engines.transformers import TransformersSampler
from lgrpo_lite.export.export import export_adapter, export_merged
from lgrpo_lite.recipe.read import load_recipe
from lgrpo_lite.train.build import build

pytestmark = pytest.mark.xdist_group("server")
SMALL = [
    "train.steps=1", "rollout.prompts_per_step=2", "rollout.group_size=4", "data.train.limit=20", "data.eval.limit=4",
    "eval.k=1", "safety.baseline_check=false", "rollout.engine=transformers", "model.lora.rank=20",
    "data.system='Add it''s up.'", "data.prefill='= '", "export.formats=[]",
]  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run whose policy is far from its base, with both exports in their places; its folder and the policy's run."""
    runs = tmp_path_factory.mktemp("runs")
    assert lgrpo("recipe", "tiny-math", "--runs", runs, "--name", "a run", "--ui", "none", *SMALL) == 0
    folder = runs / "a run"
    run = build(load_recipe(str(folder / "config.resolved.yaml")))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in run.policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    export_adapter(run.policy, run.recipe, folder / "export" / "adapter", run.eval_prompts)
    export_merged(run.policy, run.recipe, folder / "export" / "merged", run.eval_prompts)
    return folder, run


def printed(folder, capfd) -> dict:
    capfd.readouterr()
    assert lgrpo("serve-cmd", folder, "--json") == 0
    return json.loads(capfd.readouterr().out)["result"]


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_the_printed_line_serves_what_answers_as_the_policy(exported, serving, capfd, kind):
    folder, run = exported
    result = printed(folder, capfd)
    [line] = [line for line in result["lines"] if line["export"] == kind]
    words = shlex.split(line["command"])
    assert words[:2] == ["vllm", "serve"]
    curl = shlex.split(result["ask"])
    body = json.loads(curl[-1])
    sampler = TransformersSampler(run.policy, 4)
    greedy = SamplingParams(0.0, body["max_tokens"])
    answers = sampler.generate(run.eval_prompts, 1, greedy)
    with sampler.reference():
        before = sampler.generate(run.eval_prompts, 1, greedy)
    assert [row[0].text for row in answers] != [row[0].text for row in before]
    with serving(words[2:]) as url:
        for prompt, (answer,) in zip(run.eval_prompts, answers, strict=True):
            question = [{"role": "user", "content": prompt.text}]
            asked = json.dumps(body | {"messages": question, "temperature": 0.0}).encode()
            address = curl[1].replace("http://127.0.0.1:8000", url)
            request = urllib.request.Request(address, asked, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=120) as reply:
                said = json.loads(reply.read())
            assert "= " + said["choices"][0]["message"]["content"] == answer.text  # its beginning was given
            assert said["usage"]["prompt_tokens"] == len(prompt.token_ids)


def test_vllm_knows_every_flag_of_both_lines(exported, capfd):
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    folder, _ = exported
    merged, adapter = [shlex.split(line["command"]) for line in printed(folder, capfd)["lines"]]
    parser = make_arg_parser(FlexibleArgumentParser())
    plain = parser.parse_args(["--model", *merged[2:]])
    assert (
        plain.served_model_name == ["a-run"]
        and plain.generation_config == "vllm"
        and plain.max_model_len == 256
    )
    tuned = parser.parse_args(["--model", *adapter[2:]])
    assert (
        tuned.enable_lora
        and tuned.max_lora_rank == 32
        and tuned.chat_template.endswith("chat_template.jinja")
    )
    [module] = tuned.lora_modules
    assert module.name == "a-run" and module.path == str((folder / "export" / "adapter").resolve())
