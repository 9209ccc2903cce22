"""`serve-cmd`: lines a shell takes, for exports that are there, and nothing that is run."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import run_folders
from gguf import GGUFWriter
from support import lgrpo

from lgrpo_lite.cli.main import VERBS
from lgrpo_lite.export import card, serving
from lgrpo_lite.export.stamp import put_stamp, source_of
from lgrpo_lite.policy.load import locate
from lgrpo_lite.recipe.read import load_recipe

KINDS = ["merged", "adapter", "gguf", "ollama"]
BASE = locate("builtin:tiny-math")
RECIPE = run_folders.RECIPE + "data: {system: null, prefill: null, train: {task: arithmetic}}\n"


def run_with(folder: Path, *exports: str, recipe: str = RECIPE, rank: int = 16, **config) -> Path:
    """A run that ended, with these exports in their places; of each only what says that it is one."""
    run = run_folders.written(folder, recipe=recipe)
    for kind in exports:
        (run / "export" / kind).mkdir(parents=True)
    files = {
        "merged": {"merge_report.json": {}, "config.json": {"dtype": "bfloat16"} | config},
        "adapter": {"adapter_config.json": {"r": rank}, "chat_template.jinja": "x"},
        "ollama": {"Modelfile": "FROM ./x.gguf"},
    }
    for kind in exports:
        for name, content in files.get(kind, {}).items():
            (run / "export" / kind / name).write_text(json.dumps(content))
        if kind == "gguf":
            writer = GGUFWriter(run / "export" / kind / "model-Q8_0.gguf", "qwen2")
            writer.add_context_length(config.get("max_position_embeddings", 2048))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.close()
    return run


def shown(run: Path, capfd) -> dict:
    capfd.readouterr()
    assert lgrpo("serve-cmd", run, "--json") == 0
    return json.loads(capfd.readouterr().out)["result"]


def words_of(result: dict, kind: str) -> list[str]:
    [line] = [line["command"] for line in result["lines"] if line["export"] == kind]
    return shlex.split(line)


def test_a_line_for_each_export(tmp_path, capfd):
    run = run_with(tmp_path / "my run's", *KINDS)
    result = shown(run, capfd)
    exports = run.resolve() / "export"
    plain = ["--generation-config", "vllm"]
    assert words_of(result, "merged") == [
        "vllm", "serve", str(exports / "merged"), "--served-model-name", "my-run-s", "--max-model-len", "1024",
        "--dtype", "bfloat16", *plain,
    ]  # fmt: skip
    assert words_of(result, "adapter") == [
        "vllm", "serve", BASE, "--dtype", "float32", "--enable-lora", "--lora-modules", f"my-run-s={exports}/adapter",
        "--max-lora-rank", "16", "--max-model-len", "1024", "--chat-template",
        str(exports / "adapter" / "chat_template.jinja"), *plain,
    ]  # fmt: skip
    assert words_of(result, "gguf") == [
        "llama-server", "-m", str(exports / "gguf" / "model-Q8_0.gguf"), "-c", "1024", "--jinja", "--alias", "my-run-s",
        "--temp", "1", "--top-k", "0", "--top-p", "1", "--min-p", "0",
    ]  # fmt: skip
    assert words_of(result, "ollama") == ["ollama", "create", "my-run-s", "-f", f"{exports}/ollama/Modelfile"]
    assert result["not_exported"] == {} and all(line["notes"] == [] for line in result["lines"])


@pytest.mark.parametrize("there", [[], ["merged"], ["adapter", "ollama"], ["gguf"]], ids=" ".join)
def test_what_is_not_there_is_named_with_what_makes_it(tmp_path, capfd, there):
    run = run_with(tmp_path / "one run", *there)
    result = shown(run, capfd)
    assert [line["export"] for line in result["lines"]] == there
    assert list(result["not_exported"]) == [kind for kind in KINDS if kind not in there]
    for kind, command in result["not_exported"].items():
        assert shlex.split(command) == ["lgrpo-lite", "export", str(run), kind]
    assert (result["ask"] is None) == (not there)


def test_a_run_of_all_parameters_has_no_adapter_to_make(tmp_path, capfd):
    recipe = RECIPE.replace("weights: fp32", "weights: fp32, lora: null")
    assert "adapter" not in shown(run_with(tmp_path / "r", "merged", recipe=recipe), capfd)["not_exported"]


@pytest.mark.parametrize(
    ("asked", "config", "expected"),
    [
        ("300, max_new_tokens: 300", {}, "768"),
        ("256, max_new_tokens: 256", {}, "512"),
        ("900, max_new_tokens: 100", {"max_position_embeddings": 1000}, "1000"),
        ("900, max_new_tokens: 100", {"text_config": {"max_position_embeddings": 1000}}, "1000"),
    ],
)
def test_the_context_holds_a_prompt_and_its_answer(tmp_path, capfd, asked, config, expected):
    recipe = RECIPE.replace("weights: fp32", f"weights: fp32, max_prompt_tokens: {asked}")
    words = words_of(shown(run_with(tmp_path / "r", "merged", recipe=recipe, **config), capfd), "merged")
    assert words[words.index("--max-model-len") + 1] == expected


@pytest.mark.parametrize(
    ("rank", "slot"), [(1, "8"), (8, "8"), (9, "16"), (257, "320"), (400, "512"), (600, "600")]
)
def test_the_rank_is_one_that_vllm_takes(tmp_path, capfd, rank, slot):
    result = shown(run_with(tmp_path / "r", "adapter", rank=rank), capfd)
    words = words_of(result, "adapter")
    assert words[words.index("--max-lora-rank") + 1] == slot
    assert any("serve merged" in note for note in result["lines"][0]["notes"]) == (rank > 512)


@pytest.mark.parametrize(
    ("weights", "flags", "note"),
    [
        ("nf4", "--quantization bitsandbytes --load-format bitsandbytes --dtype bfloat16", "trained on nf4"),
        ("int8", "--dtype bfloat16", "trained on int8"),
        ("bf16", "--dtype bfloat16", ""),
        ("fp16", "--dtype float16", ""),
    ],
)
def test_the_base_is_served_as_it_was_trained_on(tmp_path, capfd, weights, flags, note):
    recipe = RECIPE.replace("weights: fp32", f"weights: {weights}")
    [line] = shown(run_with(tmp_path / "r", "adapter", recipe=recipe), capfd)["lines"]
    assert f"serve {BASE} {flags} --enable-lora" in line["command"]
    assert note in " ".join(line["notes"]) and bool(line["notes"]) == bool(note)


def test_a_base_of_the_hub_is_named_with_its_commit(tmp_path, capfd):
    recipe = RECIPE.replace('"builtin:tiny-math"', "me/none, revision: abc")
    words = words_of(shown(run_with(tmp_path / "r", "adapter", recipe=recipe), capfd), "adapter")
    assert words[:5] == ["vllm", "serve", "me/none", "--revision", "abc"]


def test_a_path_with_an_equals_sign_is_written_as_vllm_takes_it(tmp_path, capfd):
    run = run_with(tmp_path / "a=b", "adapter")
    words = words_of(shown(run, capfd), "adapter")
    module = json.loads(words[words.index("--lora-modules") + 1])
    assert module == {"name": "a-b", "path": str(run.resolve() / "export" / "adapter")}


def test_the_question_is_the_runs_and_asked_as_it_was(tmp_path, capfd):
    more = "rollout: {temperature: 0.9, stop: ['Q:']}\neval: {temperature: 0.6}\n"
    run = run_with(tmp_path / "r", "gguf", recipe=RECIPE + more)
    hard = run_folders.SAMPLE | {"prompt": 'it\'s "x"\n$(rm -r /) `ls` 数?'}
    run_folders.sampled(run, 11, [run_folders.SAMPLE])
    run_folders.sampled(run, 12, [hard])
    curl = shlex.split(shown(run, capfd)["ask"])
    assert curl[:2] == ["curl", "http://127.0.0.1:8080/v1/chat/completions"]
    assert json.loads(curl[-1]) == {
        "model": "r", "messages": [{"role": "user", "content": hard["prompt"]}], "temperature": 0.6, "max_tokens": 512,
        "stop": ["Q:"],
    }  # fmt: skip


def test_a_card_and_serve_cmd_have_the_same_commands(tmp_path, capfd):
    """But for places, and the question, which a card does not take from a user's data."""
    more = "rollout: {temperature: 0.9, stop: ['Q:']}\neval: {temperature: 0.6}\n"
    run = run_with(tmp_path / "my Run", *KINDS, recipe=RECIPE + more)
    (run / "export" / "ollama" / "export_report.json").write_text('{"kind": "ollama"}')
    (run / "export" / "gguf" / "export_report.json").write_text('{"kind": "gguf"}')
    result = shown(run, capfd)
    recipe = load_recipe(str(run / "config.resolved.yaml"))
    for line in result["lines"]:
        folder = run.resolve() / "export" / line["export"]
        card.write_card(run, recipe, folder, line["export"], "step-000012")
        text = (folder / "README.md").read_text()
        here = line["command"].replace(f"{shlex.quote(str(folder))} ", ". ")
        here = here.replace(shlex.quote(f"my-Run={folder}"), "my-Run=.")
        here = re.sub(rf"'?{re.escape(str(folder))}/([^ ']+)'?", r"\1", here)
        if line["export"] == "adapter":
            here = here.replace(f" {BASE} ", " BASE ")
            text = re.sub(r'"\$\(python -c .+?\)"', "BASE", text)
        assert f"\n{here}\n" in text, line["export"]
    _, asked = serving.asking_line(recipe, run, "vLLM").split("-d ", 1)
    assert json.loads(shlex.split(asked)[0])["include_stop_str_in_output"]
    assert f"-d {asked}" in (run / "export" / "merged" / "README.md").read_text()
    assert "printf" not in (run / "export" / "gguf" / "README.md").read_text()


def test_a_run_that_kept_no_answers_asks_something(tmp_path, capfd):
    run = run_with(tmp_path / "r", "merged")
    for file in (run / "completions").iterdir():
        file.unlink()
    assert "What is 2+3?" in shown(run, capfd)["ask"]


def test_all_that_is_printed_is_a_comment_or_a_line_for_a_shell(tmp_path, capfd):
    recipe = RECIPE.replace("system: null, prefill: null", "system: \"two\\nlines it's\", prefill: '= '")
    run = run_with(tmp_path / "it's a run", *KINDS, recipe=recipe)
    assert lgrpo("serve-cmd", run) == 0
    printed = capfd.readouterr().out
    commands = [line for line in printed.splitlines() if not line.startswith("# ")]
    assert [line.split()[0] for line in commands] == ["vllm", "vllm", "llama-server", "ollama", "curl"]
    assert '"two\\nlines it\'s"' in printed and "begun with '= '" in printed
    stubs = "".join(
        f'{name}() {{ printf "%s\\n" "$#"; }}\n' for name in ("vllm", "llama-server", "ollama", "curl")
    )
    ran = subprocess.run(["bash", "-euc", stubs + printed], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(len(shlex.split(line)) - 1) for line in commands]


def test_the_verb_is_one_and_takes_one_run(tmp_path, capfd):
    assert "serve-cmd" in VERBS
    assert lgrpo("serve-cmd", "nothing", "--runs", tmp_path) == 2
    assert "no run 'nothing'" in capfd.readouterr().err


def test_an_export_of_an_earlier_checkpoint_says_so(tmp_path, capfd):
    run = run_with(tmp_path / "r", "merged", "adapter", "gguf")
    for name in ("step-000000", "step-000100"):
        (run / "checkpoints" / name).mkdir(parents=True, exist_ok=True)
    (run / "checkpoints" / "latest").unlink(missing_ok=True)
    (run / "checkpoints" / "latest").symlink_to("step-000100")
    put_stamp(run / "export" / "merged", "merged", source_of(run, "step-000000"))
    put_stamp(run / "export" / "adapter", "adapter", source_of(run, "step-000100"))
    notes = {line["export"]: line["notes"] for line in shown(run, capfd)["lines"]}
    assert notes["merged"] == ["made of step-000000, the newest is step-000100"] and notes["adapter"] == []
    assert "does not say what it was made of" in notes["gguf"][0]
    assert lgrpo("serve-cmd", run) == 0
    assert "# made of step-000000, the newest is step-000100" in capfd.readouterr().out.splitlines()


def test_a_run_whose_name_begins_with_a_dash_is_printed_as_a_folder(tmp_path, capfd, monkeypatch):
    run_with(tmp_path / "-5")
    monkeypatch.chdir(tmp_path)
    assert lgrpo("serve-cmd", "./-5", "--json") == 0
    missing = json.loads(capfd.readouterr().out)["result"]["not_exported"]
    assert shlex.split(missing["merged"]) == ["lgrpo-lite", "export", "./-5", "merged"]
