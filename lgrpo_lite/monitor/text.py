"""Numbers as words: the plain line of a step, sparklines, durations."""

import itertools
import re
from collections.abc import Sequence

from lgrpo_lite.types import StepRecord

BLOCKS = "▁▂▃▄▅▆▇█"
# of those that Python calls printable, the ones that Unicode says are not to be drawn; not what picks an
# emoji's form (U+FE0F), which stands after most of them
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\U000e0100-\U000e01ef]")
GIB = 2**30
_N = r"[-+\d.,e]+"  # a number, as 1,234 or 4.2e-07 too
# what `step_line` writes, for programs that read it; every field but the first two and eta may be missing
STEP_LINE = (
    rf"step (?P<step>\d+)/(?P<steps>\d+) \| (?P<seconds>{_N})s"
    rf"(?: \| reward (?P<reward>{_N})±(?P<reward_std>{_N}) \| signal (?P<mixed>\d+)/(?P<groups>\d+)"
    rf" \| len (?P<length>{_N}) \(trunc (?P<truncated>{_N})%\))?"
    rf"(?: \| λ (?P<length_lambda>{_N}))?(?: \| clip (?P<clip>{_N})%)?(?: \| kl (?P<kl>{_N}))?"
    rf"(?: \| Δlogp (?P<disagreement>{_N}))?(?: \| mis-KL (?P<mismatch_kl>{_N}))?"
    rf"(?: \| H (?P<entropy>{_N}))?(?: \| gn (?P<grad_norm>{_N}))?(?: \| roll"
    rf" (?P<rollout_tokens_a_second>{_N}) tok/s)?"
    rf"(?: \| guide (?P<guide_tokens>\d+))?(?: \| vram (?P<vram>{_N})/(?P<vram_total>{_N}))?(?: \| missing"
    r" (?P<missing>\d+))?"
    r"(?: \| alarms (?P<alarms>[a-z_,]+))?(?: \| skipped: (?P<skipped>[^|]*))? \| eta (?P<eta>[\dhms?]+)"
)


def step_line(record: StepRecord, steps: int, eta: float | None) -> str:
    """One greppable line: `name value` fields in a fixed order, those that do not apply left out."""
    fields = [f"step {record.step}/{steps}", f"{sum(record.seconds.values()):.1f}s"]
    if None not in (record.reward, record.reward_std, record.length, record.truncated):
        fields.append(f"reward {record.reward:.3f}±{record.reward_std:.2f}")
        fields.append(f"signal {record.groups_mixed}/{record.groups}")
        fields.append(f"len {record.length:.0f} (trunc {record.truncated:.0%})")
    if record.length_lambda is not None:
        fields.append(f"λ {record.length_lambda:+.4f}")
    for name, value, form in (
        ("clip", _sum(record.clip_low, record.clip_high), ".1%"),
        ("kl", record.kl, ".4f"),
        ("Δlogp", record.disagreement, ".1e"),
        ("mis-KL", record.mismatch_kl, ".1e"),
        ("H", record.entropy, ".3f"),
        ("gn", record.grad_norm, ".3f"),
    ):
        if value is not None:
            fields.append(f"{name} {value:{form}}")
    if record.seconds.get("rollout"):
        fields.append(f"roll {record.rollout_tokens / record.seconds['rollout']:,.0f} tok/s")
    if record.guide_tokens is not None:
        fields.append(f"guide {record.guide_tokens}")
    free = record.memory.get("free")
    if free is not None:
        total = sum(size for name, size in record.memory.items() if not name.startswith("host"))
        fields.append(f"vram {(total - free) / GIB:.1f}/{total / GIB:.1f}")
    if record.missing:
        fields.append(f"missing {record.missing}")
    if record.alarms:
        fields.append(f"alarms {','.join(record.alarms)}")
    if record.skipped:
        why = " ".join(record.skipped.replace("|", "/").split())
        fields.append(f"skipped: {why}")
    return " | ".join([*fields, f"eta {duration(eta)}"])


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The last values as block characters, scaled to their own range; longer series are averaged down to
    `width`.
    """
    series = [value for value in values if value is not None]
    if not series or width < 1:
        return ""
    if len(series) > width:
        edges = [round(i * len(series) / width) for i in range(width + 1)]
        series = [sum(series[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low = min(series)
    high = max(series)
    span = (high - low) or 1.0
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[int((value - low) / span * top)] for value in series)


def duration(seconds: float | None) -> str:
    """1h05m, 3m20s, 42s; a question mark for None."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def visible(text: str) -> str:
    """What cannot be seen as its escape, so that no text moves a cursor, turns what stands beside it around,
    or hides: control characters, direction marks, characters of no width, lone surrogates. Line breaks stay.
    """
    if text.isprintable() and not _BLANK.search(text):
        return text
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    plain = character == "\n" or (character.isprintable() and not _BLANK.match(character))
    return character if plain else character.encode("unicode_escape").decode()


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b
