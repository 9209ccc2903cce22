"""The policy as GGUF files for llama.cpp and Ollama, in 16 bits and quantised, or its adapter as one; each is
compared with the policy before it is put in place.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lgrpo_lite import progress
from lgrpo_lite.data.served import chat_template
from lgrpo_lite.errors import ConfigError, VerificationError
from lgrpo_lite.export import gguf_proof, llama_tools, merge
from lgrpo_lite.export.export import memory_told, nothing_more, write_beside
from lgrpo_lite.export.formats import Job
from lgrpo_lite.export.gguf_proof import Proof, Reference
from lgrpo_lite.export.gguf_report import BITS, WHOLE, row_of, write
from lgrpo_lite.export.given import Given
from lgrpo_lite.export.place import placed
from lgrpo_lite.export.whole import whole
from lgrpo_lite.policy.policy import Policy

WHERE = "export gguf"
EXACT = "f32"
ANOTHER = "nothing was written; report this model, or export merged"
WORKS = "export merged, for vllm and transformers, works; so may another llama.cpp with --llama-cpp DIR"
Named = tuple[str, Tensor]


@dataclass(frozen=True, slots=True)
class Making:
    """What every file is made with."""

    job: Job
    given: Given
    scripts: Path
    own: bool  # written by export/gguf_writer.py, since the script does not know the tokenizer
    work: Path  # what is not kept
    log: Path
    threads: int

    @property
    def policy(self) -> Policy:
        return self.job.policy

    @property
    def converter(self) -> str:
        """Whose program wrote the file."""
        if self.own:
            return "lgrpo-lite"
        named = self.job.recipe.export.llama_cpp
        return (
            "llama.cpp in a folder of the user's" if named else f"{llama_tools.PACKAGE} {llama_tools.VERSION}"
        )


def export_gguf(
    job: Job,
    out: Path,
    quants: Sequence[str],
    *,
    kind: str = "gguf",
    beside: Callable[[Path], None] = nothing_more,
) -> dict[str, Any]:
    """NAME-QUANT.gguf for each of `quants` in the folder `out`, and export_report.json, which is returned.

    The 16-bit file must be the policy (export/gguf_proof.py), or, where 16 bits are too few for this policy,
    one of 32 bits must be. The smaller ones are made of it, and how far they are from the policy is reported.
    VerificationError (6), DiskFault (7), ConfigError (2) for a model that llama.cpp's script does not know,
    EnvironmentFault (3): nothing new is at `out`.
    """
    made = _making_of(job)
    with placed(out) as partial, _working(partial, made) as making:
        _demand_known(making)
        name = file_name(job.run)
        _demand_room(making.policy, out, quants)
        sixteen = making.work / f"{name}-{WHOLE}.gguf"
        with memory_told():
            _convert(making, sixteen, adapted=True)
            ref = gguf_proof.reference(making.policy, job.recipe, job.prompts, making.work)
        files = []
        for quant in sorted({*quants, WHOLE}, key=list(BITS).index):
            file = sixteen if quant == WHOLE else partial / f"{name}-{quant}.gguf"
            if quant != WHOLE:
                _quantise(making, sixteen, file, quant)
            proof = _proven(making, ref, file)
            if quant == WHOLE and gguf_proof.rounded(proof):
                _demand_exact(making, ref, gguf_proof.rounded(proof))
            files.append(row_of(file, quant, proof, kept=quant in quants))
        if job.recipe.export.eval:
            _evaluated(making, partial, files)
        if WHOLE in quants:
            sixteen.rename(partial / sixteen.name)
        report = write(partial, kind, job.checkpoint, making.converter, ref, files)
        beside(partial)
    return report


def export_lora_gguf(job: Job, out: Path, *, beside: Callable[[Path], None] = nothing_more) -> dict[str, Any]:
    """NAME-lora.gguf in `out`: the adapter alone, in float32, for `llama-server --lora`.

    On a 16-bit GGUF of the weights it was trained on it must be the policy; raises as `export_gguf`. All
    parameters were trained: ConfigError.
    """
    if job.recipe.model.lora is None:
        what = "all parameters were trained, there is no adapter"
        raise ConfigError(what, where="model.lora=null", fix="export gguf")
    made = _making_of(job)
    with placed(out) as partial, _working(partial, made) as making:
        _demand_known(making)
        name = file_name(job.run)
        _demand_room(making.policy, out, [WHOLE])
        file = partial / f"{name}-lora.gguf"
        base = making.work / f"{name}-base-{WHOLE}.gguf"
        with memory_told():
            _convert_adapter(making, file)
            _convert(making, base, adapted=False)
            ref = gguf_proof.reference(making.policy, job.recipe, job.prompts, making.work)
        proof = _proven(making, ref, base, adapter=file)
        if gguf_proof.rounded(proof):
            raise _another(file, gguf_proof.rounded(proof))
        row = row_of(file, EXACT, proof, kept=True)
        if job.recipe.export.eval:
            from lgrpo_lite.export.gguf_eval import Contest

            row["eval"] = Contest(job, making.log, making.threads).of_file(base, file)
        report = write(partial, "lora-gguf", job.checkpoint, making.converter, ref, [row])
        beside(partial)
    return report


def file_name(run: Path) -> str:
    """What its files are named after."""
    return run.resolve().name.replace(" ", "-")


# ------------------------------------------------------------------------------------------- before


def _making_of(job: Job) -> Callable[[Path], Making]:
    """What can be said before anything is written: packages, scripts, files of the base."""
    recipe = job.recipe
    llama_tools.demand_packages(WHERE)
    scripts = llama_tools.scripts(recipe.export.llama_cpp)
    given = Given.of(recipe.model, recipe.where("model.id"))
    from lgrpo_lite.export import gguf_writer

    own = gguf_writer.knows(given.folder)
    log = job.run / "logs" / "llama.cpp.log"
    log.parent.mkdir(exist_ok=True)
    threads = llama_tools.threads(recipe.model.threads)
    return lambda work: Making(job, given, scripts, own, work, log, threads)


@contextmanager
def _working(partial: Path, made: Callable[[Path], Making]) -> Iterator[Making]:
    """A folder in the one to be, on the same disk, which is gone at the end."""
    work = partial / ".work"
    work.mkdir()
    yield made(work)
    shutil.rmtree(work)


def _demand_known(making: Making) -> None:
    """ConfigError where the script cannot write the base's vocabulary: its architecture or its tokenizer is
    unknown to it. Seconds, before anything is merged.
    """
    if making.own:
        return
    progress.told("asking llama.cpp whether it knows this model", 0, 1)
    out = making.work / "vocabulary.gguf"
    try:
        arguments = ("--vocab-only", "--outfile", str(out), str(making.given.folder))
        llama_tools.run_script(making.scripts, llama_tools.CONVERT, *arguments, log=making.log)
    except RuntimeError as error:
        name = " ".join(making.given.config.get("architectures") or ["this model"])
        what = f"llama.cpp cannot hold {name}: {error}"
        raise ConfigError(what, where=making.job.recipe.where("model.id"), fix=WORKS) from None
    progress.told("asking llama.cpp whether it knows this model", 1, 1)
    out.unlink()


def _demand_room(policy: Policy, out: Path, quants: Sequence[str]) -> None:
    """DiskFault where the files would not fit: the merged weights go when the 16-bit file is there."""
    numbers = sum(parameter.numel() for parameter in _whole_numbers(policy))
    sixteen = 2 * numbers
    kept = sum(numbers * BITS[quant] / 8 for quant in quants if quant != WHOLE)
    llama_tools.demand_room(int(sixteen + max(sixteen, kept)), out)


def _whole_numbers(policy: Policy) -> Iterator[Tensor]:
    """Every weight of the plain model, a 4-bit one by its meta shape."""
    for parameter in policy.base.parameters():
        state = getattr(parameter, "quant_state", None)
        yield torch.empty(state.shape, device="meta") if state is not None else parameter


# ------------------------------------------------------------------------------------------- the files


def _convert(making: Making, out: Path, *, adapted: bool, kind: str = WHOLE) -> None:
    """The policy, or its base alone, as a GGUF in 16 or 32 bits."""
    merged = making.work / "merged"
    merged.mkdir()
    policy = making.policy
    tensors = merge.merged_tensors(policy.model, torch.float32, adapted=adapted)
    tensors = whole(policy.base, tensors, making.given)
    merge.write_shards(_halved(tensors) if kind == WHOLE else tensors, merged)
    write_beside(policy, making.job.recipe, making.given, merged, torch.float32)
    name = file_name(making.job.run)
    try:
        if making.own:
            from lgrpo_lite.export import gguf_writer

            gguf_writer.write(merged, out, name, torch.float16 if kind == WHOLE else torch.float32)
        else:
            progress.told("converting to GGUF", 0)
            arguments = ("--outtype", kind, "--model-name", name, "--outfile", str(out), str(merged))
            llama_tools.run_script(making.scripts, llama_tools.CONVERT, *arguments, log=making.log)
    except (OSError, RuntimeError) as error:
        what = "the GGUF could not be written"
        raise llama_tools.failed(what, str(error), making.work, ANOTHER) from None
    shutil.rmtree(merged)


def _halved(tensors: Iterator[Named]) -> Iterator[Named]:
    """Matrices in f16 and the rest in f32, as a GGUF has them. Beyond f16: VerificationError."""
    for name, tensor in tensors:
        if tensor.ndim < 2:
            yield name, tensor.float()
            continue
        half = tensor.to(torch.float16)
        if not torch.isfinite(half).all():
            what = f"{name} has numbers that f16 does not hold, up to {tensor.abs().max():.3g}"
            raise VerificationError(what, where=WHERE, fix=ANOTHER)
        yield name, half


def _convert_adapter(making: Making, out: Path) -> None:
    """The adapter by llama.cpp's script. That scales it by alpha / rank, whatever PEFT was told to."""
    folder = making.work / "adapter"
    making.policy.save(folder)
    settings = folder / "adapter_config.json"
    config = json.loads(settings.read_text("utf-8"))
    if config.get("use_rslora"):
        config["lora_alpha"] = config["lora_alpha"] * math.sqrt(config["r"])
        settings.write_text(json.dumps(config), "utf-8")
    base = str(making.given.folder)
    arguments = ("--outtype", "f32", "--base", base, "--outfile", str(out), str(folder))
    progress.told("converting the adapter", 0)
    try:
        llama_tools.run_script(making.scripts, llama_tools.CONVERT_LORA, *arguments, log=making.log)
    except RuntimeError as error:
        what = "llama.cpp's script cannot write this adapter"
        raise llama_tools.failed(what, str(error), making.work, "export gguf instead") from None


def _quantise(making: Making, source: Path, out: Path, quant: str) -> None:
    job = {"do": "quantise", "source": str(source), "out": str(out), "as": quant, "threads": making.threads}
    progress.told(f"quantising to {quant}", 0)
    try:
        code = llama_tools.at_work(f"quantising to {quant}", job, making.log)
        said = f"llama_model_quantize returned {code}: {llama_tools.last_words(making.log)}"
    except RuntimeError as error:
        code, said = 1, str(error)
    if code:
        raise llama_tools.failed(f"{quant} could not be made", said, making.work, "leave it out of --quant")


# ------------------------------------------------------------------------------------------- the proof


def _proven(making: Making, ref: Reference, file: Path, adapter: Path | None = None) -> Proof:
    """How a file compares. One that has what no file of the policy has: VerificationError."""
    shown = adapter or file
    template = exported_template(making)
    try:
        faults = gguf_proof.head_faults(file, making.policy, template)
        proof = gguf_proof.compare(ref, file, making.log, making.threads, adapter)
    except RuntimeError as error:
        what = f"llama.cpp fails on {shown.name}: {error}"
        raise VerificationError(what, where=WHERE, fix=f"{ANOTHER}; its log is {making.log}") from None
    faults += proof.faults
    if faults:
        raise _another(shown, faults)
    return proof


def _demand_exact(making: Making, ref: Reference, differs: Sequence[str]) -> None:
    """Where the file in 16 bits differs: is it rounding? One in 32 bits tells, which must be the policy."""
    exact = making.work / f"exact-{EXACT}.gguf"
    with memory_told():
        _convert(making, exact, adapted=True, kind=EXACT)
    faults = gguf_proof.rounded(_proven(making, ref, exact))
    if faults:
        raise _another(exact, [*differs, *faults])
    exact.unlink()


def _another(file: Path, faults: Sequence[str]) -> VerificationError:
    what = f"{file.name} is not the policy: {'; '.join(faults)}"
    return VerificationError(what, where=WHERE, fix=ANOTHER)


def exported_template(making: Making) -> str | None:
    """The chat template that an export carries: the run's, or the tokenizer's own."""
    tokenizer = making.policy.tokenizer
    own = chat_template(making.job.recipe.data, tokenizer)
    return tokenizer.chat_template if own is None else own


def _evaluated(making: Making, partial: Path, files: list[dict[str, Any]]) -> None:
    """Held-out problems solved through llama.cpp, beside the policy."""
    from lgrpo_lite.export.gguf_eval import Contest

    contest = Contest(making.job, making.log, making.threads)
    for row in files:
        folder = making.work if row["quant"] == WHOLE else partial
        if row["kept"]:
            row["eval"] = contest.of_file(folder / row["file"])
