"""How large and how dense the code is, beside the projects it learns from. Informs; nothing fails.

    python bench/size.py [FOLDER]

Nodes a line are syntax nodes (of the code, docstrings left out) for a line of code; long lines are over 100
columns; complexity is McCabe's by its own count: 1 and one more for every branch, loop, handler, boolean
operator and condition of a comprehension.
"""

import ast
import statistics
import sys
from pathlib import Path

# Nodes a line, lines over 100 in %, comprehensions and ternaries a thousand lines, as a review of 740fd2a
# measured them (docs/log.md, 2026-11-27). It gave this project 6.5, 14.0, 59 and 48 there; this count gives
# 7.0, 10.2, 65 and 52 for the same code, so they compare roughly.
ANCHORS = {
    "nano-vllm": (4.8, 3.2, 12, 8),
    "nanochat": (4.4, 3.5, 18, 11),
    "prime-rl": (4.0, 4.0, 17, 12),
    "tinker-cookbook rl": (2.3, 0.2, 17, 5),
    "optax": (1.9, 0.2, 2, 3),
    "llm": (3.0, 0.1, 14, 8),
}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BRANCHES = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.IfExp, ast.comprehension, ast.Assert)


def documents(tree: ast.AST) -> set[ast.AST]:
    """The docstrings' statements."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node, clean=False):
            found.add(node.body[0])
    return found


def complexity(function: ast.AST) -> int:
    branches = sum(isinstance(node, BRANCHES) for node in ast.walk(function))
    return 1 + branches + sum(len(n.values) - 1 for n in ast.walk(function) if isinstance(n, ast.BoolOp))


def parameters(function) -> int:
    a = function.args
    return len([*a.posonlyargs, *a.args, *a.kwonlyargs]) - (bool(a.args) and a.args[0].arg in ("self", "cls"))


def measured(folder: Path) -> dict[str, float]:
    total = dict.fromkeys(("lines", "code", "nodes", "long", "comprehensions", "ternaries", "walruses"), 0)
    sizes, tangled, wide = [], (0, ""), (0, "")
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text("utf-8")
        tree = ast.parse(text)
        documented = documents(tree)
        lines = text.splitlines()
        skipped = {n for d in documented for n in range(d.lineno, d.end_lineno + 1)}
        code = [
            line
            for n, line in enumerate(lines, 1)
            if line.strip() and n not in skipped and line.lstrip()[0] != "#"
        ]
        total["lines"] += len(lines)
        total["code"] += len(code)
        total["long"] += sum(len(line) > 100 for line in code)
        inside = {id(n) for d in documented for n in ast.walk(d)}
        for node in ast.walk(tree):
            total["nodes"] += isinstance(node, (ast.expr, ast.stmt)) and id(node) not in inside
            total["comprehensions"] += isinstance(node, COMPREHENSIONS)
            total["ternaries"] += isinstance(node, ast.IfExp)
            total["walruses"] += isinstance(node, ast.NamedExpr)
            if isinstance(node, FUNCTIONS):
                name = f"{path.relative_to(folder)}:{node.name}"
                tangled = max(tangled, (complexity(node), name))
                wide = max(wide, (parameters(node), name))
                sizes.append(node.end_lineno - node.lineno + 1)
    kilo = total["code"] / 1000
    return {
        "files": len(list(folder.rglob("*.py"))),
        "lines": total["lines"],
        "lines of code": total["code"],
        "nodes a line": round(total["nodes"] / total["code"], 2),
        "lines over 100, %": round(100 * total["long"] / total["code"], 1),
        "comprehensions a thousand lines": round(total["comprehensions"] / kilo),
        "ternaries a thousand lines": round(total["ternaries"] / kilo),
        "walruses a thousand lines": round(total["walruses"] / kilo, 1),
        "median function, lines": statistics.median(sizes),
        "most complex": f"{tangled[0]}  {tangled[1]}",
        "most parameters": f"{wide[0]}  {wide[1]}",
    }


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "lgrpo_lite")
    for name, value in measured(folder).items():
        print(f"{name:34} {value}")
    print("\nanchors: nodes a line, over 100 %, comprehensions, ternaries a thousand lines")
    for name, (nodes, long, comprehensions, ternaries) in ANCHORS.items():
        print(f"{name:34} {nodes:4} {long:6} {comprehensions:6} {ternaries:6}")


if __name__ == "__main__":
    main()
