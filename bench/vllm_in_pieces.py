"""UNTRIED on a GPU: brings vLLM 0.32 to a machine that has torch 2.11 and no network,
in pieces of less than 60 MiB.

    python bench/vllm_in_pieces.py split build/vllm-pieces            where there is a network: folders 1, 2, 3 ... in there
    python bench/vllm_in_pieces.py join build/vllm-pieces/1 SITE      there, once for each piece, and for build/gpu-kit
    PYTHONPATH=SITE:. python bench/gpu_check.py --engine vllm         there, when SITE has all of them

vLLM is built for torch 2.13, by torch's stable interface. Under 2.11 its extensions load and its modules are
imported; that was seen without a card, libcuda replaced by a stub, and whether they compute is open. Left out
are kernels that other cards or other models want, and those of FlashAttention, the largest: vLLM passes over
attention it cannot import and takes TRITON_ATTN. Remove the word above once this ran.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from gpu_kit import LIMIT, ROOT, download, mebibytes

UNTRIED = "UNTRIED: vLLM put together from pieces has not run on any GPU yet"
LEFT_OUT = (
    "vllm/vllm_flash_attn/_vllm_fa", "vllm/vllm-rs", "vllm/third_party/deep_gemm/", "vllm/third_party/fmha_sm100/",
    "vllm/third_party/tml_fa4/", "vllm/_deepselect", "vllm/_flashmla", "vllm/_flashkda", "vllm/_qutlass",
)  # fmt: skip
ALONE = 2**20  # bytes from which on a file is an archive of its own


def split(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        versions = ["-c", str(ROOT / "constraints-vllm.txt")]
        download(Path(name) / "whole", *versions, "vllm")
        (wheel,) = (Path(name) / "whole").iterdir()
        parts = Path(name) / "parts"
        download(parts, *versions, "-r", str(ROOT / "bench" / "vllm-needs.txt"))
        cut(wheel, parts)
        pack(sorted(parts.iterdir(), key=lambda file: -file.stat().st_size), out)
    for piece in sorted(out.iterdir()):
        print(f"{piece}: {len(list(piece.iterdir()))} files, {mebibytes(piece):.1f} MiB")


def cut(wheel: Path, parts: Path) -> None:
    """The wheel's files as archives: large ones alone, the rest together."""
    with (
        zipfile.ZipFile(wheel) as whole,
        zipfile.ZipFile(parts / "vllm.zip", "w", zipfile.ZIP_DEFLATED) as rest,
    ):
        for info in whole.infolist():
            if info.is_dir() or info.filename.startswith(LEFT_OUT):
                continue
            content = whole.read(info)
            if info.compress_size < ALONE:
                rest.writestr(info, content, zipfile.ZIP_DEFLATED)
                continue
            with zipfile.ZipFile(parts / f"{Path(info.filename).name}.zip", "w") as alone:
                alone.writestr(info, content, zipfile.ZIP_DEFLATED, compresslevel=9)


def pack(files: list[Path], out: Path) -> None:
    """Each file, the largest first, into the first folder that has room for it."""
    room: list[int] = []
    for file in files:
        size = file.stat().st_size
        if size > LIMIT:
            raise SystemExit(f"{file.name} alone is {size / 2**20:.0f} MiB, more than a piece may be")
        at = next((i for i, left in enumerate(room) if left >= size), len(room))
        room += [LIMIT] * (at == len(room))
        room[at] -= size
        piece = out / str(at + 1)
        piece.mkdir(parents=True, exist_ok=True)
        shutil.move(file, piece)


def join(piece: Path, site: Path) -> None:
    for archive in piece.glob("*.zip"):
        with zipfile.ZipFile(archive) as part:
            part.extractall(site)
    if wheels := [str(file) for file in piece.glob("*.whl")]:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "--no-index",
            "--no-deps",
        ]
        subprocess.run(
            [*pip, "--no-compile", "--no-cache-dir", "--upgrade", "--target", str(site), *wheels], check=True
        )
    print(f"{site}: {mebibytes(site):.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    splitting, joining = verbs.add_parser("split"), verbs.add_parser("join")
    splitting.add_argument("folder", type=Path, help="made anew")
    joining.add_argument("piece", type=Path)
    joining.add_argument("site", type=Path)
    args = parser.parse_args()
    print(UNTRIED)
    if args.verb == "split":
        split(args.folder)
    else:
        join(args.piece, args.site)


if __name__ == "__main__":
    main()
