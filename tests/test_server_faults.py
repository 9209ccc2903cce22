"""The engine `vllm-server` and servers that are wrong: stand-ins, so that none of it needs vLLM."""

import json
import math
import shlex
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support import tiny_recipe

from lgrpo_lite.engines.base import SamplingParams, open_engine
from lgrpo_lite.engines.http import Connection, launch_line
from lgrpo_lite.errors import ConfigError, EnvironmentFault, LgrpoError, VerificationError
from lgrpo_lite.policy.load import locate
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.train.build import eval_prompts

MODEL = locate("builtin:tiny-math")


def server_recipe(url, *overrides):
    return tiny_recipe("rollout.engine=vllm-server", f"rollout.server.url={url}", *overrides)


@pytest.fixture(scope="module")
def policy():
    return Policy.load(tiny_recipe())


@pytest.fixture(scope="module")
def prompts(policy):
    return eval_prompts(tiny_recipe(), policy)


# ------------------------------------------------------------------------------------------- stand-ins


def pair(temperature):
    """Choices of a right server for the question at opening: tokens 0 and 1 alone, 2 nats apart."""
    low = -2 / temperature
    total = math.log1p(math.exp(low))
    top = {"token_id:0": -total, "token_id:1": low - total}
    return [
        {
            "index": 0,
            "token_ids": [0],
            "logprobs": {"token_logprobs": [-total], "top_logprobs": [top]},
            "finish_reason": "length",
        }
    ]


def raw(temperature):
    choices = pair(1.0)
    choices[0]["logprobs"]["top_logprobs"] = [{"token_id:0": -9.0, "token_id:1": -11.0, "token_id:9": -0.1}]
    return choices


def logits(temperature):
    choices = pair(1.0)
    choices[0]["logprobs"]["top_logprobs"] = [
        {"token_id:0": 3.0 / temperature, "token_id:1": 1.0 / temperature}
    ]
    return choices


def without_ids(temperature):
    return [choice | {"token_ids": None} for choice in pair(temperature)]


class StandIn:
    """A web server that answers by a table: path -> (status, body), or a function
    of the request that gives them.
    """

    def __init__(self, **changed):
        self.loaded, self.key, self.redirect = [], None, None
        self.table = {
            "/version": (200, {"version": "0.32.0"}),
            "/v1/models": lambda _: (200, {"data": self.cards()}),
            "/v1/load_lora_adapter": self.load,
            "/v1/unload_lora_adapter": (200, "Success"),
            "/v1/completions": lambda body: (200, {"choices": pair(body["temperature"])}),
        }
        self.table |= {f"/v1/{path}": answer for path, answer in changed.items()}

    def cards(self, **of_base):
        base = {"id": MODEL, "root": MODEL, "parent": None, "max_model_len": 512} | of_base
        return [base, *({"id": name, "root": path, "parent": MODEL} for name, path in self.loaded)]

    def load(self, body):
        if not Path(body["lora_path"]).exists():
            return 404, {"error": {"message": f"No adapter found for {body['lora_path']}"}}
        self.loaded.append((body["lora_name"], body["lora_path"]))
        return 200, "Success"

    def answer(self, path, body, authorization):
        if self.key and authorization != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        found = self.table[path]
        return found(body) if callable(found) else found


@contextmanager
def listening(stand_in):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            status, reply = stand_in.answer(self.path, body, self.headers.get("Authorization"))
            data = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/v1/models")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        web.daemon_threads = True
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


# ------------------------------------------------------------------------------------------- opening


OFF = (404, {"detail": "Not Found"})
NO_LORA = (
    500,
    {
        "error": {
            "message": "Call to add_lora method failed: LoRA is not enabled. Use --enable-lora to enable LoRA."
        }
    },
)
SHORT = (200, {"data": [{"id": MODEL, "root": MODEL, "parent": None, "max_model_len": 64}]})
OTHER = (200, {"data": [{"id": "other/model", "root": "other/model", "parent": None, "max_model_len": 512}]})
WRONG = {
    "other model": ({"models": OTHER}, ConfigError, "serves other/model"),
    "adapter of our name": (
        {"models": (200, {"data": [{"id": MODEL, "parent": "other"}]})},
        ConfigError,
        "serves nothing",
    ),
    "no vLLM": ({"models": (200, "<html>Welcome")}, EnvironmentFault, "<html>Welcome"),
    "redirect": ({"models": (302, "")}, EnvironmentFault, "HTTP 302"),
    "short context": ({"models": SHORT}, EnvironmentFault, "64 tokens at most, the recipe asks for 112"),
    "no loading": (
        {"load_lora_adapter": OFF},
        EnvironmentFault,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING is not set",
    ),
    "no LoRA": ({"load_lora_adapter": NO_LORA}, EnvironmentFault, "--enable-lora"),
    "raw log-probs": (
        {"completions": lambda b: (200, {"choices": raw(b["temperature"])})},
        EnvironmentFault,
        "samples from",
    ),
    "raw pair": ({"completions": lambda b: (200, {"choices": pair(1.0)})}, EnvironmentFault, "samples from"),
    "logits": (
        {"completions": lambda b: (200, {"choices": logits(b["temperature"])})},
        EnvironmentFault,
        "samples from",
    ),
    "no ids": (
        {"completions": lambda b: (200, {"choices": without_ids(b["temperature"])})},
        EnvironmentFault,
        "no token ids",
    ),
    "failing": (
        {"completions": (500, {"error": {"message": "EngineDead"}})},
        EnvironmentFault,
        "HTTP 500: EngineDead",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_server_that_cannot_serve_the_recipe_is_refused_at_opening(case):
    changed, kind, words = WRONG[case]
    with listening(StandIn(**changed)) as url, pytest.raises(kind, match=words) as fault:
        open_engine(server_recipe(url))
    assert type(fault.value) is kind and url in fault.value.what
    if case in ("raw log-probs", "raw pair", "logits"):
        assert "--logprobs-mode processed_logprobs" in fault.value.fix


def test_a_right_stand_in_is_not_refused(monkeypatch):
    """Nor looked for behind a proxy, which would ask its own loopback."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with listening(StandIn()) as url:
        assert open_engine(server_recipe(url)).notes == ()


def test_a_server_that_is_down_is_named_with_the_command_that_starts_it():
    with listening(StandIn()) as url:
        pass
    with pytest.raises(EnvironmentFault, match=f"no vLLM server answers at {url}") as fault:
        open_engine(server_recipe(url))
    line = launch_line(server_recipe(url))
    assert line in fault.value.fix
    start = [
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
        "vllm",
        "serve",
        MODEL,
        "--host",
        "127.0.0.1",
        "--port",
        url.rpartition(":")[2],
    ]
    assert shlex.split(line)[:8] == start


@pytest.mark.parametrize(
    ("key", "setting", "words"),
    [
        (None, (), "wants an API key"),
        (None, ("rollout.server.api_key_env=TEST_KEY",), "not set: TEST_KEY"),
        ("wrong", ("rollout.server.api_key_env=TEST_KEY",), "does not take the key in TEST_KEY"),
        ("two\nlines", ("rollout.server.api_key_env=TEST_KEY",), "holds a line break"),
        ("s3cret", ("rollout.server.api_key_env=TEST_KEY",), None),
    ],
)
def test_the_key_comes_from_the_environment_and_is_never_shown(monkeypatch, key, setting, words):
    monkeypatch.delenv("TEST_KEY", raising=False)
    if key:
        monkeypatch.setenv("TEST_KEY", key)
    stand_in = StandIn()
    stand_in.key = "s3cret"
    with listening(stand_in) as url:
        if words is None:
            open_engine(server_recipe(url, *setting))
            return
        with pytest.raises(EnvironmentFault, match=words) as fault:
            open_engine(server_recipe(url, *setting))
    assert fault.value.where.startswith("command line, rollout.server.api_key_env") or not setting
    assert not key or key not in str(fault.value)


def test_a_slow_server_names_the_timeout():
    release = threading.Event()
    with listening(StandIn(models=lambda _: (release.wait(60), OTHER)[1])) as url:
        with pytest.raises(LgrpoError, match=r"did not answer within 0.2 s") as fault:
            open_engine(server_recipe(url, "rollout.server.timeout=0.2"))
        release.set()
    assert "rollout.server.timeout" in fault.value.where and "rollout.server.timeout" in fault.value.fix


# ------------------------------------------------------------------------------------------- serving


def test_a_server_that_dies_in_a_rollout_ends_the_run_and_not_the_close(policy, prompts):
    with listening(StandIn()) as url:
        engine = open_engine(server_recipe(url))
        entered = engine.serving(policy)
        sampler = entered.__enter__()
    with pytest.raises(EnvironmentFault, match="no vLLM server answers"):
        sampler.generate(prompts, 2, SamplingParams(1.0, 16))
    engine.close()
    assert not engine.folder.path.exists()


def test_an_adapter_that_the_server_took_and_does_not_list_is_no_adapter(policy):
    stand_in = StandIn(models=(200, {"data": [{"id": MODEL, "root": MODEL, "parent": None}]}))
    with listening(stand_in) as url:
        engine = open_engine(server_recipe(url))
        with pytest.raises(VerificationError, match="does not list it"), engine.serving(policy):
            pass


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, "No adapter found for /there"),
        (500, "Call to add_lora method failed: [Errno 13] Permission denied"),
    ],
)
def test_a_server_that_does_not_see_the_folder_names_the_setting(policy, status, words):
    stand_in = StandIn()
    with listening(stand_in) as url:
        engine = open_engine(server_recipe(url))
        stand_in.table["/v1/load_lora_adapter"] = (status, {"error": {"message": words}})
        with pytest.raises(EnvironmentFault, match="refuses the adapter") as fault, engine.serving(policy):
            pass
    assert words in fault.value.what
    assert "rollout.server.adapter_dir" in fault.value.fix and list(engine.folder.path.iterdir()) == []


def test_a_policy_that_is_not_a_number_is_named(policy, prompts):
    """vLLM's own answer to such an adapter, which on a CPU leaves its cache full of them."""
    reply = {
        "error": {
            "message": "Out of range float values are not JSON compliant",
            "type": "BadRequestError",
            "code": 400,
        }
    }
    first = iter((1.0, 0.5))
    stand_in = StandIn(
        completions=lambda _: (200, {"choices": pair(t)}) if (t := next(first, None)) else (400, reply)
    )
    with listening(stand_in) as url:
        engine = open_engine(server_recipe(url))
        with (
            engine.serving(policy) as sampler,
            pytest.raises(LgrpoError, match="probabilities are not finite"),
        ):
            sampler.generate(prompts[:1], 1, SamplingParams(1.0, 16))


@pytest.mark.parametrize(("version", "notes"), [("0.32.1", 0), ("0.31.0", 1), ("0.33.0", 1), ("dev", 1)])
def test_a_version_that_was_not_tested_is_noted(version, notes):
    stand_in = StandIn()
    stand_in.table["/version"] = (200, {"version": version})
    with listening(stand_in) as url:
        assert len(open_engine(server_recipe(url)).notes) == notes


def test_an_answer_that_the_server_cut_short_is_an_error(policy, prompts):
    with listening(StandIn()) as url:
        engine = open_engine(server_recipe(url))
        with (
            engine.serving(policy) as sampler,
            pytest.raises(EnvironmentFault, match="after 1 of 16 tokens") as fault,
        ):
            sampler.generate(prompts[:1], 1, SamplingParams(1.0, 16))
    assert "--max-model-len" in fault.value.fix


def sampled(tokens, logp=-0.5):
    """Choices of a server that answers with these tokens."""
    logprobs = {"token_logprobs": [logp] * len(tokens)}
    return [{"index": 0, "token_ids": tokens, "logprobs": logprobs, "finish_reason": "length"}]


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        (sampled([10**9] * 16), "the token 1000000000, and the model has"),
        (sampled([-1] * 16), "the token -1, and the model has"),
        (sampled([0] * 17), "17 tokens where at most 16 were asked for"),
        (sampled([math.inf]), "no token ids"),
        (sampled([0], 10**400), "no token ids"),
        (sampled(["a"]), "no token ids"),
    ],
)
def test_tokens_that_the_model_cannot_have_sampled_are_refused(policy, prompts, choices, words):
    first = iter((1.0, 0.5))  # the two requests at opening
    stand_in = StandIn(
        completions=lambda _: (200, {"choices": pair(t) if (t := next(first, None)) else choices})
    )
    with listening(stand_in) as url:
        engine = open_engine(server_recipe(url))
        with engine.serving(policy) as sampler, pytest.raises(EnvironmentFault, match=words):
            sampler.generate(prompts[:1], 1, SamplingParams(1.0, 16))


@pytest.mark.parametrize(
    ("tokens", "reply", "count", "reason"),
    [
        ([3, 4, 5, 6], {}, 2, "stop"),  # more than up to the stop string: cut as every engine does
        ([3, 4], {"stop_reason": "STOP", "finish_reason": "stop"}, 2, "stop"),
        ([3, 5], {"stop_reason": "STOP", "finish_reason": "stop"}, 2, "stop"),  # decoded otherwise there
        ([5] * 16, {}, 16, "length"),
    ],
)
def test_a_server_is_asked_for_stop_strings_and_cut_like_any_engine(
    policy, prompts, tokens, reply, count, reason
):
    first, asked = iter((1.0, 0.5)), []  # the two requests at opening
    stop = policy.tokenizer.decode([3, 4])

    def complete(body):
        asked.append(body)
        told = {key: stop if value == "STOP" else value for key, value in reply.items()}
        return 200, {"choices": pair(t) if (t := next(first, None)) else [sampled(tokens)[0] | told]}

    with listening(StandIn(completions=complete)) as url:
        engine = open_engine(server_recipe(url))
        with engine.serving(policy) as sampler:
            [[answer]] = sampler.generate(prompts[:1], 1, SamplingParams(1.0, 16, stop=(stop,)))
    assert asked[-1]["stop"] == [stop] and asked[-1]["include_stop_str_in_output"] is True
    assert (answer.token_ids, answer.finish_reason) == (tuple(tokens[:count]), reason)
    assert answer.logprobs == (-0.5,) * count


@pytest.mark.parametrize(
    "cards",
    [
        [{"id": 7}],
        [{"id": ["x"]}],
        [{"id": MODEL, "root": {}}],
        [{"id": MODEL, "root": MODEL, "parent": None, "max_model_len": "long"}],
    ],
)
def test_models_that_are_not_described_as_vllm_does_are_refused(cards):
    refused = pytest.raises(EnvironmentFault, match="answers /v1/models with HTTP 200")
    with listening(StandIn(models=(200, {"data": cards}))) as url, refused:
        open_engine(server_recipe(url))


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://there", "http://", "http://user:pw@there", "http://there:port"]
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ConfigError, match=r"no address|a password") as fault:
        open_engine(server_recipe(url))
    assert "pw" not in str(fault.value)


@pytest.mark.parametrize(
    ("url", "count"),
    [
        *(("http://127.0.0.1:8000/v1/", 0), ("http://localhost:8000", 0), ("http://[::1]:8000", 0)),
        *(("https://gpu:8000", 1), ("http://gpu", 2)),
    ],
)
def test_a_server_elsewhere_comes_with_notes(url, count):
    notes = Connection(server_recipe(url)).notes
    assert len(notes) == count and all("gpu" in note for note in notes)
