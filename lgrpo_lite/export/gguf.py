"""The policy as GGUF files for llama.cpp and Ollama, in 16 bits and quantised, or its adapter as one; each is
compared with the policy before it is put in place.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
LEAST = 64 << 20  # bytes: a vocabulary alone takes a few
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
    out: Path  # where the export is to be
    log: Path
    threads: int
    work: Path = Path()  # what is not kept; in the folder that is being filled

    @property
    def policy(self) -> Policy:
        return self.job.policy

    @property
    def converter(self) -> str:
        """Whose program wrote the file."""
        if self.own:
            return "lgrpo-lite"
        if self.job.recipe.export.llama_cpp is not None:
            return "another llama.cpp"
        return f"{llama_tools.PACKAGE} {llama_tools.VERSION}"


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
    asked = _making(job, out)
    with placed(out, kind) as partial, _working(asked, partial) as making:
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
            if quant == WHOLE and gguf_proof.differs(proof):
                _demand_rounding(making, ref, file, gguf_proof.differs(proof))
            elif proof.kl > gguf_proof.GROSS_KL:
                far = f"KL to the policy {proof.kl:.2g} nats (accepted {gguf_proof.GROSS_KL:g} of any file)"
                raise _another(file, [far], "leave it out of --quant; nothing was written")
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
    asked = _making(job, out)
    with placed(out, "lora-gguf") as partial, _working(asked, partial) as making:
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
        if gguf_proof.differs(proof):  # is it the base's rounding?
            base.unlink()
            base = making.work / f"{name}-base-{EXACT}.gguf"
            with memory_told():
                _convert(making, base, adapted=False, kind=EXACT)
            proof = _proven(making, ref, base, adapter=file)
        if gguf_proof.differs(proof):
            raise _another(file, gguf_proof.differs(proof))
        row = row_of(file, EXACT, proof, kept=True)
        if job.recipe.export.eval:
            from lgrpo_lite.export.gguf_eval import Contest

            row["eval"] = _solved(Contest(job, making.log, making.threads), base, file)
        report = write(partial, "lora-gguf", job.checkpoint, making.converter, ref, [row])
        beside(partial)
    return report


def file_name(run: Path) -> str:
    """What its files are named after."""
    return re.sub(r"[^\w.-]+", "-", run.resolve().name)


# ------------------------------------------------------------------------------------------- before


def _making(job: Job, out: Path) -> Making:
    """What can be said before anything is written: packages, scripts, files of the base."""
    recipe = job.recipe
    llama_tools.demand_packages(WHERE)
    scripts = llama_tools.scripts(recipe.export.llama_cpp)
    given = Given.of(recipe.model, recipe.where("model.id"))
    from lgrpo_lite.export import gguf_writer

    own = gguf_writer.knows(given.folder)
    threads = llama_tools.threads(recipe.model.threads)
    return Making(job, given, scripts, own, out, llama_tools.log_of(job.run), threads)


@contextmanager
def _working(asked: Making, partial: Path) -> Iterator[Making]:
    """A folder in the one to be, on the same disk, which is gone at the end."""
    work = partial / ".work"
    work.mkdir()
    yield replace(asked, work=work)
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
        what = f"llama.cpp's script does not take {name}: {error}"
        llama_tools.demand_room(LEAST, making.out)  # it may have been the disk
        raise ConfigError(what, where=making.job.recipe.where("model.id"), fix=WORKS) from None
    progress.told("asking llama.cpp whether it knows this model", 1, 1)
    out.unlink()


def _demand_room(policy: Policy, out: Path, quants: Sequence[str]) -> None:
    """DiskFault where the files would not fit: the merged weights go when the 16-bit file is there."""
    sixteen = 2 * _numbers(policy)
    kept = sum(sixteen * BITS[quant] / 16 for quant in quants if quant != WHOLE)
    asked = gguf_proof.bytes_of(policy)
    llama_tools.demand_room(int(sixteen + max(sixteen, kept + asked)), out)


def _numbers(policy: Policy) -> int:
    """Of the plain model; a 4-bit weight lies packed."""
    count = 0
    for parameter in policy.base.parameters():
        state = getattr(parameter, "quant_state", None)
        count += parameter.numel() if state is None else math.prod(state.shape)
    return count


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
        raise llama_tools.failed(what, str(error), making.out, ANOTHER) from None
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
        raise llama_tools.failed(what, str(error), making.out, "export gguf instead") from None


def _quantise(making: Making, source: Path, out: Path, quant: str) -> None:
    job = {"do": "quantise", "source": str(source), "out": str(out), "as": quant, "threads": making.threads}
    progress.told(f"quantising to {quant}", 0)
    try:
        code = llama_tools.at_work(f"quantising to {quant}", job, making.log)
        said = f"llama_model_quantize returned {code}: {llama_tools.last_words(making.log)}"
    except RuntimeError as error:
        code, said = 1, str(error)
    if code:
        raise llama_tools.failed(f"{quant} could not be made", said, making.out, "leave it out of --quant")


# ------------------------------------------------------------------------------------------- the proof


def _proven(making: Making, ref: Reference, file: Path, adapter: Path | None = None) -> Proof:
    """How a file compares. One that has what no file of the policy has: VerificationError."""
    shown = adapter or file
    template = _template(making)
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


def _demand_rounding(making: Making, ref: Reference, file: Path, found: Sequence[str]) -> None:
    """Where the file in 16 bits differs from the policy: is it by rounding alone? One in 32 bits must be the
    policy, and each number of the other the same, rounded.
    """
    llama_tools.demand_room(8 * _numbers(making.policy), making.out)  # merged, and the file
    exact = making.work / f"exact-{EXACT}.gguf"
    with memory_told():
        _convert(making, exact, adapted=True, kind=EXACT)
    faults = gguf_proof.differs(_proven(making, ref, exact)) + gguf_proof.not_rounded(file, exact)
    if faults:
        raise _another(file, [*found, *faults])
    exact.unlink()


def _another(file: Path, faults: Sequence[str], fix: str = ANOTHER) -> VerificationError:
    return VerificationError(f"{file.name} is not the policy: {'; '.join(faults)}", where=WHERE, fix=fix)


def _template(making: Making) -> str | None:
    """The chat template that an export carries: the run's, or the tokenizer's own."""
    tokenizer = making.policy.tokenizer
    own = chat_template(making.job.recipe.data, tokenizer)
    if own is not None:
        return own
    named = tokenizer.chat_template
    return named.get("default") if isinstance(named, dict) else named


def _evaluated(making: Making, partial: Path, files: list[dict[str, Any]]) -> None:
    """Held-out problems solved through llama.cpp, beside the policy."""
    from lgrpo_lite.export.gguf_eval import Contest

    contest = Contest(making.job, making.log, making.threads)
    for row in files:
        folder = making.work if row["quant"] == WHOLE else partial
        if row["kept"]:
            row["eval"] = _solved(contest, folder / row["file"])


def _solved(contest: Any, file: Path, adapter: Path | None = None) -> dict[str, Any]:
    """llama.cpp that fails: VerificationError."""
    try:
        return contest.of_file(file, adapter)
    except RuntimeError as error:
        what = f"llama.cpp fails while {(adapter or file).name} solves held-out problems: {error}"
        raise VerificationError(what, where=WHERE, fix=ANOTHER) from None
