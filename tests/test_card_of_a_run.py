"""The model card of an export: what the Hub reads of it, that its figures are the run's, that its programs run,
and that nothing a file or a recipe holds is more than text in it.
"""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import gguf
import pytest
import yaml
from huggingface_hub import ModelCard, constants
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt
from run_folders import evaluation, lines, written
from support import lgrpo, tiny_recipe

import lgrpo_lite
from lgrpo_lite.errors import ConfigError
from lgrpo_lite.export import card, card_parts
from lgrpo_lite.export.card import write_card, write_cards
from lgrpo_lite.export.card_front import KINDS
from lgrpo_lite.folder.facts import facts
from lgrpo_lite.folder.origin import base_of, licence_of
from lgrpo_lite.folder.report import write_report
from lgrpo_lite.monitor.tail import Tail

SMALL = [
    "train.steps=2", "train.eval_every=1", "train.save_every=1", "data.eval.limit=16", "eval.k=2",
    "rollout.prompts_per_step=4", "rollout.group_size=8", "safety.sync_proof_every=0", "safety.baseline_check=false",
]  # fmt: skip
HEADINGS = ["Before and after", "How to run it", "Prompt", "What was trained, and where", "Checks of this export",
            "Limits", "About this card"]  # fmt: skip
OURS = ("https://huggingface.co/", "https://arxiv.org/abs/")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Of two steps, evaluated before and after each, exported at the end."""
    runs = tmp_path_factory.mktemp("runs")
    assert lgrpo("recipe", "tiny-math", *SMALL, "--runs", runs, "--name", "one", "--ui", "none") == 0
    return runs / "one"


def evals(run: Path) -> dict[int, dict]:
    rows = [json.loads(line) for line in (run / "evals.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows}


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text("utf-8")


def made(path: Path, *overrides: str, kind: str = "merged", step: int = 12, **run) -> str:
    """The card of a run that was written by hand, whose recipe has these settings."""
    if not path.exists():
        written(path, **run)
    folder = path / "export" / kind
    folder.mkdir(parents=True, exist_ok=True)
    write_card(path, tiny_recipe("train.steps=40", *overrides), folder, kind, f"step-{step:06d}")
    return text_of(folder)


def front(text: str) -> dict:
    """As the Hub reads it: the library must take it, and lose nothing of it."""
    data = ModelCard(text).data.to_dict()
    assert data == yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    return data


class Seen(HTMLParser):
    """What a browser makes of it."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(ModelCard(text).text))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_comment(self, data):
        self.tags.append("comment")


def headings(text: str) -> list[str]:
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(ModelCard(text).text)
    return [
        tokens[i + 1].content
        for i, token in enumerate(tokens)
        if token.type == "heading_open" and token.tag == "h2"
    ]


# ------------------------------------------------------------------------------------------- a real run


@pytest.mark.parametrize(
    ("kind", "library", "words"),
    [
        (
            "merged",
            "transformers",
            ["| greedy answers equal, token for token | 16 of 16 |", "vllm serve . --served"],
        ),
        ("adapter", "peft", ["as its checkpoint has them", "--lora-modules one=. --max-lora-rank 16"]),
    ],
)
def test_the_card_of_an_export_has_the_figures_of_its_run(trained, kind, library, words):
    text = text_of(trained / "export" / kind)
    data = front(text)
    assert data["library_name"] == library and data["pipeline_tag"] == "text-generation"
    assert data["license"] == "apache-2.0" and "base_model" not in data  # builtin is no name on the Hub
    assert {"lgrpo-lite", "grpo", "lambda-grpo", "lora", "reinforcement-learning"} <= set(data["tags"])
    name, results = model_index_to_eval_results(data["model-index"])
    last = evals(trained)[2]
    found = {str(result.metric_name).split(" (95 %")[0]: result.metric_value for result in results}
    assert name == "one" and found == {
        "accuracy, 2 answers a problem at temperature 1": last["accuracy"],
        "greedy accuracy": last["greedy"],
        "one of 2 answers right": last["pass_at_k"],
        "most frequent of 2 answers right": last["maj"],
    }
    assert headings(text) == HEADINGS and "could not be made" not in text
    before = evals(trained)[0]["accuracy"]
    steps = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    tokens = sum(step["rollout_tokens"] for step in steps)
    for shown in (
        f"| accuracy, 16 problems × 2 samples, T=1 | {before:.3f} (", f"| {last['accuracy']:.3f} (", "of every 100 problems",
        "λ-GRPO ([arXiv:2510.06870](https://arxiv.org/abs/2510.06870))", f"| tokens sampled | {tokens:,} in 64 answers",
        f"+0.0000 → {steps[-1]['length_lambda']:+.4f}, learned", "2 of 2, each of 4 prompts × 8 answers",
        "Answers were cut at 48 tokens", "on 16 problems, of generated arithmetic, heldout", *words,
    ):  # fmt: skip
        assert shown in text, shown


def test_a_card_names_no_place_on_this_machine(trained):
    places = {
        str(trained),
        str(trained.parent),
        str(Path.home()),
        str(Path.cwd()),
        str(Path(lgrpo_lite.__file__).parent),
    }
    for kind in ("merged", "adapter"):
        assert not [place for place in places if place in text_of(trained / "export" / kind)]


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_the_program_in_a_card_runs_in_its_folder(trained, kind, monkeypatch, capsys):
    folder = trained / "export" / kind
    monkeypatch.chdir(folder)
    [program] = re.findall(r"```python\n(.+?)\n```", text_of(folder), re.DOTALL)
    exec(compile(program, "card", "exec"), {})
    assert re.search(r"\d", capsys.readouterr().out)


def test_an_earlier_checkpoint_has_its_own_figures_and_keeps_them(trained, tmp_path):
    """Also where the cards are made anew with the last checkpoint as the default."""
    out = tmp_path / "model"
    for words in (("merged", "--checkpoint", "1"), ("card",)):
        assert lgrpo("export", trained, *words, "--out", out) == 0
        text = text_of(out)
        _, results = model_index_to_eval_results(front(text)["model-index"])
        rows = evals(trained)
        assert results[0].metric_value == rows[1]["accuracy"]
        assert (
            f"| {rows[1]['accuracy']:.3f} (" in text
            and "1 of 2, each of" in text
            and "It is of step 1;" in text
        )
    assert json.loads((out / "export_report.json").read_text()) == {
        "kind": "merged",
        "checkpoint": "step-000001",
    }


def test_the_cards_of_a_run_are_made_anew(trained, capsys):
    for kind in ("merged", "adapter"):
        (trained / "export" / kind / "README.md").write_text("old")
    assert lgrpo("export", trained, "card") == 0
    said = capsys.readouterr().out.split()
    assert said == [str(trained / "export" / kind / "README.md") for kind in ("adapter", "merged")]
    assert front(text_of(trained / "export" / "adapter"))["library_name"] == "peft"
    assert front(text_of(trained / "export" / "merged"))["library_name"] == "transformers"


def test_a_folder_that_is_no_export_gets_no_card(trained, tmp_path, capsys):
    assert lgrpo("export", trained, "card", "--out", tmp_path) == 2
    assert "no export is there" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_what_another_suite_measured_of_this_checkpoint_is_in_its_card(tmp_path):
    path = written(tmp_path / "run")
    for label, value in (("step-000012", 0.75), ("base", 0.25), ("step-000006", 0.5)):
        estimate = {"value": value, "low": value - 0.1, "high": value + 0.1}
        about = {"suite": "gsm8k", "subject": {"label": label}, "temperature": 0.6}
        (path / "evals" / label).mkdir(parents=True)
        result = {"about": about, "figures": {"problems": 50, "k": 4, "avg": estimate}}
        (path / "evals" / label / "result.json").write_text(json.dumps(result))
    text = made(path)
    assert "| gsm8k | base | 50 × 4 | 0.6 | 0.250 (0.150 to 0.350) |" in text
    assert (
        "| gsm8k | step-000012 | 50 × 4 | 0.6 | 0.750 (0.650 to 0.850) |" in text
        and "step-000006" not in text
    )
    assert "gsm8k" not in made(path, step=11)


# ------------------------------------------------------------------------------------------- what it says of a run


@pytest.mark.parametrize(
    ("overrides", "words", "tags"),
    [
        (["algorithm.use=grpo"], ["GRPO ([arXiv:2402.03300]("], {"grpo"}),
        (["algorithm.use=length_preference"], ["λ-GRPO ([arXiv:2510.06870](", "+0.0000 → +0.1200, learned"], {"lambda-grpo"}),
        (
            ["algorithm.length_preference.freeze=true", "algorithm.length_preference.lambda_init=0.5"],
            ["| λ of the token preference | +0.5000, not trained |"],
            set(),
        ),
        (
            ["algorithm.use=trace", "algorithm.trace.lambda=0.9"],
            ["GRPO-λ ([arXiv:2510.00194](", "| λ of the traces | 0.9, with γ = 1.0, style both |"],
            {"grpo-lambda"},
        ),
        (["model.lora=null"], ["all parameters trained.", "| trained | all parameters |"], set()),
        (["model.weights=nf4"], ["on a base held in nf4"], {"qlora"}),
        (["data.system=Think first."], ["The system prompt:\n\n```\nThink first.\n```"], set()),
        (["data.template=chat"], ["its own chat template"], set()),
        (["data.prefill=1 + "], ["Every answer begins with this"], set()),
        (["rewards=[{use: math, weight: 2.0}]"], ["| rewards | `math` × 2 |", "rewarded by `math`: 1 for an answer"], set()),
        (["rollout.stop=[END]"], ['stop_strings=["END"], tokenizer=tokenizer', '"stop": ["END"]'], set()),
        (["eval.temperature=0.0"], ["do_sample=False"], set()),
    ],
)  # fmt: skip
def test_what_was_trained_is_told(tmp_path, overrides, words, tags):
    text = made(tmp_path / "run", *overrides)
    for shown in words:
        assert shown in text, shown
    assert tags <= set(front(text)["tags"]) and ("lora" in front(text)["tags"]) == (
        "model.lora=null" not in overrides
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_card(tmp_path, kind):
    path = written(tmp_path / "run")
    folder = path / "export" / kind
    folder.mkdir(parents=True)
    (folder / "one-Q8_0.gguf").touch()
    for lora in ([], ["model.lora=null"]):
        text = made(path, "model.id=Qwen/Qwen2.5-3B-Instruct", "data.template=plain", *lora, kind=kind)
        data = front(text)
        library, relation = KINDS[kind]
        assert data.get("library_name") == library and data.get("base_model_relation") == relation
        assert data["base_model"] == "Qwen/Qwen2.5-3B-Instruct" and "license" not in data
        assert ("## How to run it" in text) == (kind != "run") and "could not be made" not in text
        assert "The licence of the base is not known here" in text


def test_a_run_without_an_evaluation_claims_nothing(tmp_path):
    text = made(tmp_path / "run", evals=[])
    assert "model-index" not in front(text)
    assert "It was not evaluated" in text and "whether it is better than its base is not known" in text


def test_an_evaluation_of_another_step_is_no_result_of_this_checkpoint(tmp_path):
    text = made(tmp_path / "run", evals=[(0, 0.4), (6, 0.7), (12, 0.9)], step=8)
    assert "model-index" not in front(text) and "0.900" not in text
    assert "The last evaluation is of step 6; this checkpoint is of step 8." in text


def test_the_best_of_several_evaluations_is_said_to_be_that(tmp_path):
    path = written(tmp_path / "run", evals=[(0, 0.4), (6, 0.9), (12, 0.7)])
    assert "its figures flatter it" in made(path, step=6)
    assert "its figures flatter it" not in made(path, step=12)


def test_a_run_in_which_nothing_was_learned_says_so(tmp_path):
    path = written(tmp_path / "run", steps=3)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    lines(path / "metrics.jsonl", [row | {"skipped": "no signal"} for row in rows])
    assert "this is the base model still" in made(path, step=3)
    assert "3 of 40" in made(path, step=3) and "3 of them made no update" in made(path, step=3)


def test_few_problems_are_called_few(tmp_path):
    path = written(tmp_path / "run")
    lines(path / "evals.jsonl", [evaluation(step, 0.5, problems=12) for step in (0, 12)])
    assert "12 problems are few" in made(path) and "So few problems" in made(path)


def test_the_data_is_named_and_not_where_it_lies(tmp_path):
    file = tmp_path / "private" / "mine.jsonl"
    file.parent.mkdir()
    file.write_text('{"question": "1+1=?", "answer": "2"}\n' * 70)
    text = made(
        tmp_path / "run", f"data.train=[{{path: {file}}}, {{hf: openai/gsm8k, config: main}}]", "data.eval=[]", "data.system=x"
    )  # fmt: skip
    data = front(text)
    assert data["datasets"] == ["openai/gsm8k"] and "private" not in text
    assert "| training data | `mine.jsonl`, a local file, licence not known here |" in text
    assert (
        "[openai/gsm8k](https://huggingface.co/datasets/openai/gsm8k), main, train, licence not known" in text
    )
    assert '"content": "your question"' in text  # what a user asks is not published


def test_gguf_files_are_told_with_their_proofs(tmp_path):
    path = written(tmp_path / "run")
    folder = path / "export" / "gguf"
    folder.mkdir(parents=True)
    rows = []
    for quant, kl in (("Q8_0", 0.003), ("Q4_K_M", 0.04)):
        solved = {"problems": 64, "accuracy": 0.5, "low": 0.4, "high": 0.6, "policy": 0.53}
        rows.append(
            {"file": f"model-{quant}.gguf", "quant": quant, "bytes": 2**28, "kl": kl, "max_kl": 0.2, "same_top": 0.99,
             "greedy_equal": 46, "prompts": 50, "tokens": 2000, "eval": solved if quant == "Q8_0" else None, "kept": quant == "Q8_0"}
        )  # fmt: skip
    report = {
        "kind": "gguf",
        "checkpoint": "step-000012",
        "files": rows,
        "training_kl": 0.01,
        "notes": ["a <b>note</b>"],
    }
    (folder / "export_report.json").write_text(json.dumps(report))
    (folder / "model-Q8_0.gguf").touch()
    text = made(path, kind="gguf")
    assert (
        "| `model-Q8_0.gguf` | Q8_0 | 256 MiB | 0.003 | 0.2 | 99.00% | 46 of 50 | 0.500 (0.400 to 0.600) of 64 problems; the policy 0.530 |"
        in text
    )
    assert "training moved the policy 0.01 from its base" in text and "a &lt;b>note" in text
    assert (
        "| `model-Q4_K_M.gguf`, not kept | Q4_K_M |" in text and "llama-server -m model-Q8_0.gguf -c" in text
    )


@pytest.mark.parametrize("kind", ["gguf", "ollama"])
@pytest.mark.parametrize(
    ("quants", "solved", "expected"),
    [
        (["f16", "Q4_K_M"], False, [0.9]),
        (["Q8_0", "Q4_K_M"], False, []),
        (["Q8_0", "Q4_K_M"], True, [0.5, 0.5]),
    ],
)
def test_quantised_files_do_not_claim_what_the_policy_solved(tmp_path, kind, quants, solved, expected):
    path = written(tmp_path / "run")
    folder = path / "export" / kind
    folder.mkdir(parents=True)
    figures = {"problems": 64, "accuracy": 0.5, "low": 0.4, "high": 0.6, "policy": 0.53}
    rows = []
    for quant in quants:
        (folder / f"model-{quant}.gguf").touch()
        rows.append({"file": f"model-{quant}.gguf", "quant": quant, "kept": True, "eval": figures if solved else None})  # fmt: skip
    rows.append({"file": "model-Q6_K.gguf", "quant": "Q6_K", "kept": False, "eval": figures if solved else None})  # fmt: skip
    (folder / "export_report.json").write_text(json.dumps({"kind": kind, "files": rows}))
    text = made(path, "data.eval={task: arithmetic}", kind=kind)
    data = front(text)
    claimed = model_index_to_eval_results(data["model-index"])[1] if "model-index" in data else []
    assert [result.metric_value for result in claimed][: len(expected) or None] == expected
    if solved:
        assert [result.metric_name for result in claimed] == [
            f"greedy accuracy of model-{quant}.gguf on 64 problems (95 % interval 0.400 to 0.600)" for quant in quants
        ]  # fmt: skip
    assert ("not of the quantised files" in text) == ("f16" not in quants)


# ------------------------------------------------------------------------------------------- base and licence


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"README.md": "---\nlicense: mit\n---\n"}, ("mit", None, None)),
        ({"README.md": "---\nlicense: [llama3.1, mit]\n---\n"}, ("llama3.1", None, None)),
        (
            {"README.md": "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: https://x.y/LICENSE\n---\n"},
            ("other", "qwen-research", "https://x.y/LICENSE"),
        ),
        ({"README.md": "---\nlicense: Buy <me> a coffee\n---\n"}, ("other", "Buy <me> a coffee", None)),
        ({"README.md": "---\nlicense: other\nlicense_link: javascript:alert(1)\n---\n"}, ("other", None, None)),
        ({"README.md": "no front matter", "LICENSE": "  Apache License\n   Version 2.0, January 2004"}, ("apache-2.0", None, None)),
        ({"LICENSE.txt": "MIT License\n\nCopyright"}, ("mit", None, None)),
        ({"LICENSE": "All yours."}, ("other", "LICENSE", None)),
        ({"README.md": "---\nlicense: &a [*a]\n---\n"}, None),
        ({"README.md": "---\nlicense: 3\n---\n"}, None),
        ({"README.md": "---\n[\n---\n"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_the_licence_of_a_base_is_read_where_it_lies(tmp_path, files, expected):
    folder = tmp_path / "base"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    base = base_of(str(folder))
    found = licence_of(base)
    assert base.kind == "folder" and base.name == "base" and base.hub is None
    assert (found and (found.id, found.name, found.link)) == expected


def test_a_gguf_says_its_own_licence(tmp_path):
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_license("Apache-2.0")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = licence_of(base_of(str(path)))
    assert found is not None and found.id == "apache-2.0" and base_of(str(path)).name == "tiny.gguf"
    path.write_bytes(b"GGUF")
    assert licence_of(base_of(str(path))) is None


def test_a_base_on_the_hub_is_read_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for kind, name, licence in (("models", "me--base", "gemma"), ("datasets", "me--data", "cc-by-4.0")):
        repository = tmp_path / "hub" / f"{kind}--{name}"
        (repository / "snapshots" / "abc").mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("abc")
        (repository / "snapshots" / "abc" / "README.md").write_text(
            f"---\nlicense: {licence}\nlicense_link: LICENSE\n---\n"
        )
    settings = ["model.id=me/base", "data.train={hf: me/data}", "data.eval={hf: me/test, split: test}"]
    text = made(tmp_path / "run", *settings)
    data = front(text)
    assert data["base_model"] == "me/base" and data["license"] == "gemma" and data["datasets"] == ["me/data"]
    assert data["license_link"] == "https://huggingface.co/me/base/blob/main/LICENSE"
    assert "[me/data](https://huggingface.co/datasets/me/data), train, licence cc-by-4.0" in text
    asked = data["model-index"][0]["results"][0]["dataset"]
    assert asked == {"name": "me/test, test (held out)", "type": "me/test", "split": "test"}


# ------------------------------------------------------------------------------------------- texts of others

EVIL = "```\n---\n~~~~\n# heading\n<script>alert(1)</script>\n````` [x](http://evil.example)\n\x1b[31m"
TITLE = "- x: |\n--- # [click](http://evil.example) ![i](http://evil.example/i.png) <img src=x> 'a\" <!-- "


def test_hostile_texts_are_text(tmp_path):
    settings = [
        f"data.system={json.dumps(EVIL)}",
        f"data.prefill={json.dumps(EVIL)}",
        f"recipe.title={json.dumps(TITLE)}",
    ]
    model = """model.id="o\\"w'n/<b>x</b>](http://evil.example)`$(touch hacked)`\""""
    for kind in ("merged", "adapter", "lora-gguf"):
        path = tmp_path / "a|b ](x) <i>"
        text = made(path, *settings, model, kind=kind)
        seen = Seen(text)
        assert headings(text) == HEADINGS
        assert not {"script", "img", "i", "hr", "comment"} & set(seen.tags)
        assert all(link.startswith(OURS) for link in seen.links), seen.links
        assert "\x1b" not in text and "base_model" not in front(text)
        assert front(text)["model-index"][0]["name"].startswith("a|b")


def test_a_model_id_stays_inside_its_quotes(tmp_path):
    """In the program and in the shell line of an adapter."""
    import ast
    import shlex

    name = "w'\"; $(x) `y`"
    text = made(tmp_path / "run", f"model.id={json.dumps('/a/b/' + name)}", kind="adapter")
    [program] = re.findall(r"`{3,}python\n(.+?)\n`{3,}", text, re.DOTALL)
    strings = [node.value for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Constant)]
    [line] = [line for line in text.splitlines() if line.startswith("vllm serve")]
    assert f"path/to/{name}" in strings and shlex.split(line)[2] == f"path/to/{name}"
    assert "/a/b" not in text


@pytest.mark.parametrize(
    "name",
    ["env.json", "evals.jsonl", "metrics.jsonl", "STATUS.json", "export/merged/merge_report.json", "export/gguf/export_report.json"],
)  # fmt: skip
@pytest.mark.parametrize(
    "content",
    [None, b"", b"\xff\xfe\x00", b"{", b"[]", b'{"packages": 3, "gpus": [1, {}], "prompts": "x", "files": [3, {}], "kl": []}',
     b'{"step": null, "accuracy": 1.0, "problems": "x", "k": [], "intervals": 3}\n'],
)  # fmt: skip
def test_what_is_missing_or_foreign_is_said_and_costs_no_card(tmp_path, name, content):
    path = written(tmp_path / "run")
    kind = name.split("/")[1] if name.startswith("export") else "merged"
    (path / "export" / kind).mkdir(parents=True)
    (path / name).unlink(missing_ok=True)
    if content is not None:
        (path / name).write_bytes(content)
    text = made(path, kind=kind)
    front(text)
    assert [heading for heading in headings(text) if heading in HEADINGS] == headings(text)
    assert "could not be made" not in text


# ------------------------------------------------------------------------------------------- faults


def test_a_fault_in_a_part_costs_that_part_and_its_words_stay_in_the_log(tmp_path, monkeypatch, caplog):
    def broken(made):
        raise RuntimeError("/home/me/secret")

    monkeypatch.setitem(card_parts.PARTS, "Limits", broken)
    text = made(tmp_path / "run")
    assert "## Limits\n\nThis part could not be made (RuntimeError)" in text and "secret" not in text
    assert headings(text) == HEADINGS and "/home/me/secret" in caplog.text


def test_a_card_that_cannot_be_made_is_a_few_lines(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(card, "Tail", None)
    text = made(tmp_path / "run")
    assert front(text)["tags"] == ["lgrpo-lite"] and "could not be made" in text and "NoneType" in caplog.text


def test_front_matter_that_cannot_be_made_costs_no_text(tmp_path, monkeypatch):
    monkeypatch.setattr(card, "front_matter", None)
    text = made(tmp_path / "run")
    assert (
        front(text) == {"pipeline_tag": "text-generation", "tags": ["lgrpo-lite"]}
        and headings(text) == HEADINGS
    )


def test_a_card_that_cannot_be_written_loses_no_export(tmp_path, caplog):
    path = written(tmp_path / "run")
    (path / "export" / "merged" / "README.md").mkdir(parents=True)
    write_card(path, tiny_recipe(), path / "export" / "merged", "merged", "step-000012")
    assert "could not be written" in caplog.text


def test_a_run_without_exports_has_a_card_of_its_own(tmp_path):
    path = written(tmp_path / "run")
    [file] = write_cards(path, tiny_recipe(), "step-000012", None)
    assert file == path / "export" / "README.md"
    assert "nothing of it is exported yet" in file.read_text() and "library_name" not in front(
        file.read_text()
    )
    with pytest.raises(ConfigError, match="no export is there"):
        write_cards(path, tiny_recipe(), "step-000012", tmp_path)


# ------------------------------------------------------------------------------------------- the report


def test_the_report_tells_the_same_facts(trained):
    write_report(trained)
    report, text = (trained / "report.md").read_text(), text_of(trained / "export" / "merged")
    rows = [f"| {label} | {words} |" for label, words in facts(Tail(trained).refresh())]
    assert len(rows) > 12 and all(row in report and row in text for row in rows)


def test_machine_and_versions_are_those_of_the_run(trained):
    known = json.loads((trained / "env.json").read_text())
    found = dict(facts(Tail(trained).refresh()))
    assert f"{known['cpus']} CPUs" in found["machine"] and "GiB of memory" in found["machine"]
    assert f"torch {known['packages']['torch']}" in found["versions"]


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        ([], "4 CPUs"),
        ([{"name": "NVIDIA H100", "memory": 80 * 2**30}], "one GPU: NVIDIA H100 of 80.0 GiB, 4 CPUs"),
        ([{"name": "A", "memory": 2**34}] * 2, "one of 2 GPUs: A of 16.0 GiB, 4 CPUs"),
        ([{"name": "A", "memory": 2**34}, {"name": "B"}], "one of 2 GPUs: A or B, 4 CPUs"),
    ],
)
def test_gpus_are_told_as_they_were_used(tmp_path, gpus, words):
    path = written(tmp_path / "run")
    (path / "env.json").write_text(json.dumps({"cpus": 4, "gpus": gpus}))
    assert dict(facts(Tail(path).refresh()))["machine"] == words
