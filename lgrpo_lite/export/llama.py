"""A GGUF file as llama.cpp reads it, in a process of its own: libllama ends the process on a file it does not
like.

    python -m lgrpo_lite.export.llama FD < job.json

writes JSON objects, one a line, to that file descriptor: {"done": n, "of": m} while it works, {"result": …}
at the end; llama.cpp has stdout and stderr for itself. Neither torch nor anything of a run is imported.
"""

import ctypes
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp  # pyright: ignore[reportMissingImports]
import numpy as np

F32 = 0  # ggml's number of that type, for keys and values
BATCH = 512  # tokens of one pass
ON_CARD = 999  # layers; a build without a GPU keeps them on the CPU
FILE_TYPES = {
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q6_K": llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K,
    "Q5_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}


class Loaded:
    """A model in llama.cpp's memory, with an adapter on it where there is one.

    Keys and values are float32, so that what is compared is the file alone. `room`: tokens of one sequence;
    `rows`: sequences at once. What llama.cpp cannot read: RuntimeError, or the end of the process.
    """

    def __init__(self, path: str, *, room: int, rows: int = 1, threads: int, adapter: str | None = None):
        llama_cpp.llama_backend_init()
        self._open(path, room * rows, rows, threads)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        if adapter is not None:
            self._put_on(adapter)

    def _open(self, path: str, tokens: int, rows: int, threads: int) -> None:
        """On a card, where llama.cpp was built for one and it has room; else on the CPU."""
        settings = llama_cpp.llama_model_default_params()
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = tokens
        options.n_batch = options.n_ubatch = BATCH
        options.n_seq_max = rows
        options.kv_unified = True
        options.type_k = options.type_v = F32
        options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.n_threads = options.n_threads_batch = threads
        for layers in (ON_CARD, 0):
            settings.n_gpu_layers = layers
            self.model = llama_cpp.llama_model_load_from_file(path.encode(), settings)
            if not self.model:
                continue
            self.context = llama_cpp.llama_init_from_model(self.model, options)
            if self.context:
                return
            llama_cpp.llama_model_free(self.model)
        what = "has no room for" if self.model else "cannot load"
        raise RuntimeError(f"llama.cpp {what} {Path(path).name}")

    def _put_on(self, adapter: str) -> None:
        loaded = llama_cpp.llama_adapter_lora_init(self.model, adapter.encode())
        if not loaded:
            raise RuntimeError(f"llama.cpp cannot put {Path(adapter).name} onto the base")
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(loaded)
        scales = (ctypes.c_float * 1)(1.0)
        if llama_cpp.llama_set_adapters_lora(self.context, adapters, 1, scales):
            raise RuntimeError(f"llama.cpp does not take {Path(adapter).name}")

    def tokens(self, text: str) -> list[int]:
        """Special tokens by their names, none added."""
        data = text.encode()
        room = len(data) + 8
        found = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), found, room, False, True)
        if count < 0:
            raise RuntimeError(f"llama.cpp reads more than {room} tokens in {len(data)} bytes")
        return list(found[:count])

    def ends(self, token: int) -> bool:
        """Whether an answer ends at that token."""
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    # ------------------------------------------------------------------------------------- passes

    def forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def _pass(self, tokens: Sequence[tuple[int, int, int, bool]]) -> np.ndarray:
        """Logits after those of `tokens` (id, position, sequence, wanted) that are wanted, in their order."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        wanted = []
        for i, (token, position, sequence, want) in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = want
            if want:
                wanted.append(i)
        failed = llama_cpp.llama_decode(self.context, batch)
        if failed:
            raise RuntimeError(f"llama.cpp gave up on a pass (llama_decode: {failed})")
        rows = np.empty((len(wanted), self.size), np.float32)
        for row, i in enumerate(wanted):
            logits = llama_cpp.llama_get_logits_ith(self.context, i)
            rows[row] = np.ctypeslib.as_array(logits, (self.size,))
        return rows

    def _read(self, ids: Sequence[int], sequence: int, begin: int) -> Iterator[np.ndarray]:
        """Feed a sequence from its first token; logits after `ids[begin]` and all that follow, in pieces."""
        for first in range(0, len(ids), BATCH):
            piece = ids[first : first + BATCH]
            tokens = [(t, first + i, sequence, first + i >= begin) for i, t in enumerate(piece)]
            yield self._pass(tokens)

    def logprobs(self, ids: Sequence[int], begin: int) -> np.ndarray:
        """log p(next | ids up to t) for t = begin …, read alone: [positions V], float64."""
        self.forget()
        return log_softmax(np.concatenate(list(self._read(ids, 0, begin))))

    def greedy(
        self, prompts: Sequence[Sequence[int]], most: Sequence[int], ends: set[int]
    ) -> list[list[int]]:
        """The most likely tokens after each prompt, all at once: at most `most` of each, its end included."""
        self.forget()
        answers: list[list[int]] = [[] for _ in prompts]
        for row, ids in enumerate(prompts):
            logits = list(self._read(ids, row, len(ids) - 1))[-1]
            answers[row].append(int(logits[-1].argmax()))
        while True:
            active = []
            for row, answer in enumerate(answers):
                if answer[-1] not in ends and len(answer) < most[row]:
                    active.append(row)
            if not active:
                return answers
            step = []
            for row in active:
                position = len(prompts[row]) + len(answers[row]) - 1
                step.append((answers[row][-1], position, row, True))
            for row, logits in zip(active, self._pass(step), strict=True):
                answers[row].append(int(logits.argmax()))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


# ------------------------------------------------------------------------------------------- jobs


def quantise(job: dict[str, Any]) -> int:
    """`source` as the file `out` of type `as`. What llama.cpp returns: 0 is well."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = FILE_TYPES[job["as"]]
    settings.nthread = job["threads"]
    return int(llama_cpp.llama_model_quantize(job["source"].encode(), job["out"].encode(), settings))


def compare(job: dict[str, Any]) -> dict[str, Any]:
    """The file beside what the policy does: `texts` (text, its token ids), `ends`, `answers` (prompt, answer,
    file of the policy's log-probs along it).
    """
    answers = job["answers"]
    room = max(len(one["prompt"]) + len(one["answer"]) for one in answers) + 1
    model = Loaded(job["file"], room=room, threads=job["threads"], adapter=job.get("adapter"))
    texts = [[text, ids, model.tokens(text)] for text, ids in job["texts"]]
    rows = []
    for number, one in enumerate(answers):
        told(number, len(answers))
        rows.append(_compared(model, one, set(job["ends"])))
    return {
        "vocabulary": model.size,
        "misread": [row for row in texts if row[1] != row[2]],
        "endless": [token for token in job["ends"] if not model.ends(token)],
        "answers": rows,
    }


def _compared(model: Loaded, one: dict[str, Any], ends: set[int]) -> dict[str, Any]:
    """KL(policy ‖ file) of each token of the answer, whether the same token is the most likely one, and the
    file's own greedy answer.
    """
    prompt, answer = one["prompt"], one["answer"]
    policy = np.load(one["logprobs"]).astype(np.float64)
    if policy.shape[1] > model.size:  # of padding: rows of an embedding that stand for no token
        policy = log_softmax(policy[:, : model.size])
    mine = model.logprobs([*prompt, *answer[:-1]], len(prompt) - 1)[:, : policy.shape[1]]
    kl = (np.exp(policy) * (policy - mine)).sum(-1)
    [greedy] = model.greedy([prompt], [len(answer)], ends)
    return {
        "kl": [float(value) for value in kl],
        "same_top": [bool(same) for same in policy.argmax(-1) == mine.argmax(-1)],
        "greedy": greedy,
    }


def answer(job: dict[str, Any]) -> list[list[int]]:
    """Greedy answers to `prompts`, `rows` of them at once, of at most `most` tokens."""
    prompts, most, rows = job["prompts"], job["most"], job["rows"]
    room = max(map(len, prompts)) + most + 1
    model = Loaded(job["file"], room=room, rows=rows, threads=job["threads"], adapter=job.get("adapter"))
    answers = []
    for begin in range(0, len(prompts), rows):
        told(begin, len(prompts))
        asked = prompts[begin : begin + rows]
        answers += model.greedy(asked, [most] * len(asked), set(job["ends"]))
    return answers


JOBS = {"quantise": quantise, "compare": compare, "answer": answer}


def told(done: int, of: int) -> None:
    _reply({"done": done, "of": of})


def _reply(line: dict[str, Any]) -> None:
    os.write(int(sys.argv[1]), json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    _reply({"result": JOBS[asked["do"]](asked)})
