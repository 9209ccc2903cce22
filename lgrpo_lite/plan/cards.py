"""Cards by name: what memory each is sold with, as its box says."""

import re
from collections.abc import Iterable

from lgrpo_lite.errors import ConfigError, nearest
from lgrpo_lite.policy.budget import GIB

UNITS = {"": GIB, "GB": GIB, "GIB": GIB, "MB": 2**20, "MIB": 2**20}  # sold as 24 GB is 24 GiB
LARGEST = 1024  # GB of a card: a number beyond it is a name
SIZE = r"(\d+(?:\.\d+)?)\s*(GB|GIB|MB|MIB)"
MAKERS = (
    "nvidia",
    "geforce",
    "rtx",
    "gtx",
    "tesla",
    "quadro",
    "gpu",
    "graphics",
    "card",
)  # say nothing of it
# by name in small letters and digits, without MAKERS -> GB, several where it is sold with several
CARDS: dict[str, tuple[int, ...]] = {
    "5090": (32,), "5080": (16,), "5070ti": (16,), "5070": (12,), "5060ti": (8, 16), "5060": (8,),
    "5050": (8,),
    "4090": (24,), "4080super": (16,), "4080": (16,), "4070tisuper": (16,), "4070ti": (12,),
    "4070super": (12,), "4070": (12,), "4060ti": (8, 16), "4060": (8,),
    "3090ti": (24,), "3090": (24,), "3080ti": (12,), "3080": (10, 12), "3070ti": (8,), "3070": (8,),
    "3060ti": (8,), "3060": (8, 12), "3050": (6, 8),
    "2080ti": (11,), "2080super": (8,), "2080": (8,), "2070super": (8,), "2070": (8,), "2060": (6, 12),
    "titan": (24,), "titanv": (12,),
    "5090laptop": (24,), "5080laptop": (16,), "5070tilaptop": (12,), "5070laptop": (8,),
    "4090laptop": (16,), "4080laptop": (12,), "4070laptop": (8,), "4060laptop": (8,),
    "3080tilaptop": (16,), "3080laptop": (8, 16), "3070laptop": (8,), "3060laptop": (6,),
    "t4": (16,), "p100": (16,), "v100": (16, 32), "a10": (24,), "a10g": (24,), "a30": (24,), "a40": (48,),
    "a100": (40, 80), "a800": (40, 80), "l4": (24,), "l40": (48,), "l40s": (48,), "h100": (80,),
    "h800": (80,), "h20": (96,), "h200": (141,), "b200": (180,),
    "a2000": (6, 12), "a4000": (16,), "a4500": (20,), "a5000": (24,), "a6000": (48,),
    "2000ada": (16,), "4000ada": (20,), "5000ada": (32,), "6000ada": (48,),
    "pro4000": (24,), "pro4500": (32,), "pro5000": (48, 72), "pro6000": (96,),
    "dgxspark": (128,), "gb10": (128,),
}  # fmt: skip


def capacity(text: str, where: str = "command line, --gpu") -> int:
    """Bytes of a card by its memory (24GB, 24) or its name (4090, "RTX 4090", "A100 80GB"). A name that is
    none, or that stands for several sizes: ConfigError.
    """
    written = text.strip()
    alone = re.fullmatch(SIZE, written.upper())
    if alone and float(alone[1]):
        return int(float(alone[1]) * UNITS[alone[2]])
    name = plain(written)
    if name not in CARDS and re.fullmatch(r"\d+(?:\.\d+)?", written) and 0 < float(written) <= LARGEST:
        return int(float(written) * GIB)
    size = re.search(rf"[\s(-]{SIZE}\)?$", written.upper())
    if size:
        name = plain(written[: size.start()])
    if name not in CARDS:
        what = f"not a size of memory, and no card of that name is known: {text!r}{nearest(name, CARDS)}"
        raise ConfigError(what, where=where, fix="write its memory, --gpu 24GB, or its name, --gpu 4090")
    sizes = CARDS[name]
    given = int(float(size[1]) * UNITS[size[2]]) if size else None
    known = {gb * GIB for gb in sizes}
    if given in known:
        return given
    sold = f"{written!r} is sold with {_listed(sizes)} GB"
    if given is not None:
        raise ConfigError(sold, where=where, fix="write its memory alone, as --gpu 48GB")
    if len(known) > 1:
        fix = " or ".join(f"--gpu {gb}GB" for gb in sizes)
        raise ConfigError(sold, where=where, fix=f"write {fix}")
    return known.pop()


def plain(name: str) -> str:
    """A card's name without its maker's words, in small letters and digits."""
    words = re.findall(r"[a-z0-9]+", name.casefold())
    joined = "".join(word for word in words if word not in MAKERS)
    for maker in MAKERS:  # written together: rtx4090
        joined = joined.removeprefix(maker)
    return joined


def _listed(sizes: Iterable[int]) -> str:
    return " or ".join(map(str, sizes))
