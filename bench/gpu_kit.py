"""`make gpu-kit`: wheels for bench/first_contact.sh on a machine without a network, CPython
3.12 on x86-64, in one folder.

    python bench/gpu_kit.py FOLDER     names: bench/gpu-kit.txt, versions: constraints-cpu.txt; exit 1 above 60 MiB

bitsandbytes is built for every CUDA there is: kept are its parts for a CPU and for the CUDA
that torch 2.11 to 2.13 come with.
"""

import argparse
import base64
import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT = 60 * 2**20
PYTHON = "3.12"
GLIBC = (
    *(f"manylinux_2_{minor}" for minor in range(31, 11, -1)),
    "manylinux2014",
    "manylinux2010",
    "manylinux1",
)
KEPT = "libbitsandbytes_cpu.so", "libbitsandbytes_cuda130.so"


def download(out: Path, *what: str) -> None:
    """Wheels that fit the machine there, from pip's own index, without their needs."""
    there = [
        "--python-version",
        PYTHON,
        "--implementation",
        "cp",
        *(f"--platform={glibc}_x86_64" for glibc in GLIBC),
    ]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        "-q",
        "--no-deps",
        "--only-binary=:all:",
    ]
    subprocess.run([*pip, *there, "-d", str(out), *what], check=True)


def repack(wheel: Path, wanted: Callable[[str], bool]) -> None:
    """The same wheel with the files that are wanted; its RECORD is made anew."""
    slim = wheel.with_suffix(".slim")
    with (
        zipfile.ZipFile(wheel) as old,
        zipfile.ZipFile(slim, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new,
    ):
        record = next(name for name in old.namelist() if name.endswith(".dist-info/RECORD"))
        rows = []
        for info in old.infolist():
            if info.is_dir() or info.filename == record or not wanted(info.filename):
                continue
            content = old.read(info)
            new.writestr(info, content, zipfile.ZIP_DEFLATED)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            rows.append(f"{info.filename},sha256={digest},{len(content)}\n")
        new.writestr(record, "".join([*rows, f"{record},,\n"]))
    slim.replace(wheel)


def mebibytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="made anew")
    out = parser.parse_args().folder
    shutil.rmtree(out, ignore_errors=True)
    download(out, "-c", str(ROOT / "constraints-cpu.txt"), "-r", str(ROOT / "bench" / "gpu-kit.txt"))
    (bitsandbytes,) = out.glob("bitsandbytes-*.whl")
    repack(bitsandbytes, lambda name: not name.endswith(".so") or name.endswith(KEPT))
    size = mebibytes(out)
    print(f"{out}: {len(list(out.iterdir()))} wheels, {size:.1f} MiB of at most {LIMIT / 2**20:.0f}")
    return int(size > LIMIT / 2**20)


if __name__ == "__main__":
    sys.exit(main())
