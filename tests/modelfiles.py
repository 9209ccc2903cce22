"""Twenty conversations, and a Modelfile as Ollama reads it: what is written for it is read back by its rules."""

from collections import defaultdict

CODE = "```python\nprint({'a': [1, 2]})\n```"
MARKUP = "{{ .System }}{{- end }} {% raw %}{# no #} <|im_end|> </s>"
CONVERSATIONS = [
    [("user", "What is 2+3?")],
    [("user", " leading, trailing \n")],
    [("user", "")],
    [("user", " \n\t ")],
    [("user", MARKUP)],
    [("user", CODE)],
    [("user", 'He said "no", \'yes\', `maybe` and """all""".')],
    [("user", "a\nb\n\nc\r\nd\te")],
    [("user", "数学 é \u00a0 \u200d \U0001f468\u200d\U0001f469 \u05d0")],
    [("user", "\\n \\u0041 \\ C:\\new %s %d $i $_ .")],
    [("system", "Answer briefly."), ("user", "q")],
    [("system", ""), ("user", "q")],
    [("system", "  \n"), ("user", "q")],
    [("system", MARKUP + "\n" + CODE), ("user", " q ")],
    [("user", "q1"), ("assistant", "a1"), ("user", "q2")],
    [("user", "q1 "), ("assistant", " a1\n"), ("user", "\nq2"), ("assistant", ""), ("user", "q3")],
    [("system", "s"), ("user", "q1"), ("assistant", MARKUP), ("user", "q2")],
    [
        ("system", "s\n"),
        ("user", CODE),
        ("assistant", CODE),
        ("user", CODE),
        ("assistant", "数"),
        ("user", "q"),
    ],
    [("system", "s"), ("user", ""), ("assistant", ""), ("user", "")],
    [("system", '"""\n"""'), ("user", "x" * 300 + " " * 30), ("assistant", "y"), ("user", "\U0001f600" * 20)],
]


def messages(turns) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


def read_modelfile(text: str) -> dict[str, list[str]]:
    """Commands and their values by Ollama's rules: a value ends with the line on which its quotes are closed, and
    what is not printed is dropped.
    """
    commands: dict[str, list[str]] = defaultdict(list)
    name, value = "", ""
    for sign in text + "\n":
        if name in ("", "PARAMETER"):
            if sign == "#" and not value:
                name = "#"
            elif sign in " \n\t" and value:
                name, value = f"{name} {value}".strip(), ""
            elif sign not in " \n\t":
                value += sign
        elif name == "#":
            name = "" if sign == "\n" else "#"
        elif sign in "\r\n" and _unquoted(value.strip()) is not None:
            commands[name].append(_unquoted(value.strip()) or "")
            name, value = "", ""
        elif sign.isprintable() or sign in "\r\n\t":
            value += sign
    assert not name and not value, "a value that does not end"
    return dict(commands)


def _unquoted(value: str) -> str | None:
    """None while its quotes are open."""
    for quotes in ('"""', '"'):
        if value.startswith(quotes):
            closed = len(value) >= 2 * len(quotes) and value.endswith(quotes)
            return value[len(quotes) : -len(quotes)] if closed else None
    return value
