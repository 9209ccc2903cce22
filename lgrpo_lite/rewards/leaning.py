"""Names that test code uses and does not define: of Python, or of the solution.

Standard library only, any Python from 3.8 on. Only the tests' text decides: what a solution defines or
imports changes nothing, so that no `class math: isclose = …` of its own is believed.
"""

import ast
import builtins
import importlib
import importlib.util
import symtable
import sys

# Modules whose members tests lean on without a word.
LEANED_ON = (
    "math", "cmath", "collections", "fractions", "decimal", "datetime", "itertools", "functools",
    "heapq", "bisect", "copy", "random", "statistics", "string", "typing", "dataclasses", "enum", "abc",
    "io", "contextlib", "pathlib", "operator", "unittest", "re", "json",
)  # fmt: skip
# Their members that solutions define too, and mean something else by.
ORDINARY = {
    "dist", "merge", "count", "cycle", "repeat", "copy", "replace", "field", "fields", "sample",
    "choice", "seed", "log", "search", "match", "split", "sub", "compile", "template", "error", "main",
    "mode", "tee", "compress", "add", "mul", "truediv", "floordiv", "pow", "neg", "pos", "inv", "not_",
    "and_", "or_", "xor", "concat", "contains", "index", "indexOf", "lt", "le", "eq", "ne", "ge", "gt",
    "load", "dump", "loads", "dumps", "skip", "case", "call", "update", "closing", "find", "text",
    "time",
}  # fmt: skip
# Members that are there to check what others give, or to write it down.
CHECKING = {"isclose", "isnan", "isinf", "isfinite", "inf", "nan", "pi", "deepcopy"}
# Packages that the standard library is without, by the names tests give them.
OFTEN = {
    "np": "numpy",
    "pd": "pandas",
    "sp": "sympy",
    "plt": "matplotlib.pyplot",
    **{name: name for name in ("numpy", "pandas", "scipy", "sympy", "torch", "pytest", "hypothesis")},
}
# By name, the first module of LEANED_ON that has it. To load them all takes longer than most tests: the side
# that starts sandboxes does it once, and hands it over.
MEMBER_OF = {}
STANDARD = frozenset(getattr(sys, "stdlib_module_names", LEANED_ON))


class Fault(Exception):
    """The tests themselves are no good: that is nobody's wrong answer."""


def of_python(text, tree):
    """What stands for the names that tests mean of Python's: modules, and members of them, by name.

    Fault: they mean a package that is not installed here, or import one.
    """
    for package in _imported(tree):
        if package == "doctest":
            raise Fault("the tests import doctest, and examples in comments do not run here")
        if package != "solution" and importlib.util.find_spec(package) is None:
            raise Fault(f"the tests import {package}, which is not in the sandbox")
    uses = Uses(text, tree)
    found = {}
    members = {}
    for name in sorted(uses.free):
        module = uses.module_meant(name)
        if module:
            found[name] = module
        elif name in OFTEN and uses.attributes.get(name) and name not in uses.called:
            raise Fault(f"the tests use {name}, and {OFTEN[name]} is not in the sandbox")
        else:
            member = _member(name)
            if member is not None and uses.fits(name, member):
                members[name] = member
    others = uses.free - set(found) - set(members)
    subjects = uses.subjects(set(members), others)
    if not others and not uses.solution_is_named:  # what they test must be among these
        functions = {name for name in members if not isinstance(members[name], type)}
        subjects = subjects | (functions - CHECKING) or set(members)
    for name, member in members.items():
        if name not in subjects:
            found[name] = member
    return found


def _imported(tree):
    """Packages that the first level of a text imports."""
    packages = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            packages += [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            packages.append(node.module.partition(".")[0])
    return packages


def members():
    """What MEMBER_OF is to be."""
    found = {}
    for module in LEANED_ON:
        loaded = importlib.import_module(module)
        for name in getattr(loaded, "__all__", None) or dir(loaded):
            ordinary = name in ORDINARY or name.startswith("_") or len(name) < 2
            if not ordinary and not isinstance(getattr(loaded, name), type(ast)):
                found.setdefault(name, module)
    return found


def _member(name):
    """What a module means by a name; None: nothing, or nothing certain."""
    module = MEMBER_OF.get(name)
    return module and getattr(importlib.import_module(module), name, None)


class Uses(ast.NodeVisitor):
    """How a text uses the names that it does not define."""

    def __init__(self, text, tree):
        self.tree = tree
        self.free = _free(symtable.symtable(text, "tests.py", "exec"))
        self.called = {}  # of a name: the calls of it
        self.attributes = {}  # of a name, or of a variable: those that are used of it
        self.aliases = {}  # of a name: variables that are it
        self.made = {}  # of a name: variables that hold what its call gave
        self.assigned = []  # pairs of names and the expression they come from
        # arguments, functions, classes, imports of the solution: what they give is not followed
        self.unsure = set()
        self.visit(tree)

    @property
    def solution_is_named(self):
        """Whether the tests reach what they test as solution.name, or by an import of it."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module == "solution":
                return True
            if isinstance(node, ast.Import) and any(alias.name == "solution" for alias in node.names):
                return True
        return False

    def visit_Call(self, node):
        if isinstance(node.func, ast.Name):
            self.called.setdefault(node.func.id, []).append(node)
        self.generic_visit(node)

    def visit_Attribute(self, node):
        if isinstance(node.value, ast.Name):
            self.attributes.setdefault(node.value.id, set()).add(node.attr)
        elif isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name):
            self.attributes.setdefault(node.value.func.id + "()", set()).add(node.attr)
        self.generic_visit(node)

    def visit_Assign(self, node):
        self.assigned.append((_names(node.targets), node.value))
        if isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name):
            self.made.setdefault(node.value.func.id, set()).update(_names(node.targets))
        if isinstance(node.value, ast.Name):
            self.aliases.setdefault(node.value.id, set()).update(_names(node.targets))
        self.generic_visit(node)

    def visit_For(self, node):
        self._walked(node)

    def visit_comprehension(self, node):
        self._walked(node)

    def _walked(self, node):
        self.assigned.append((_names([node.target]), node.iter))
        self.generic_visit(node)

    def visit_Import(self, node):
        self._imported([alias for alias in node.names if alias.name == "solution"])

    def visit_ImportFrom(self, node):
        self._imported(node.names if node.module == "solution" else [])

    def _imported(self, aliases):
        """Names of the solution."""
        self.unsure.update(alias.asname or alias.name for alias in aliases)

    def visit_arg(self, node):
        self.unsure.add(node.arg)

    def visit_FunctionDef(self, node):
        self._defined(node)

    def visit_AsyncFunctionDef(self, node):
        self._defined(node)

    def visit_ClassDef(self, node):
        self._defined(node)

    def _defined(self, node):
        self.unsure.add(node.name)
        self.generic_visit(node)

    def module_meant(self, name):
        """The module that a name means, where every use of it fits one; else None."""
        if name in self.called:
            return None
        full = name if name in STANDARD else OFTEN.get(name)
        if full is None or importlib.util.find_spec(full.partition(".")[0]) is None:
            return None
        try:
            module = importlib.import_module(full)
        except Exception:  # some need what a sandbox is without
            return None
        attributes = set(self.attributes.get(name, ()))
        for variable in self.aliases.get(name, ()):
            attributes |= self.attributes.get(variable, set())
        return module if attributes and all(hasattr(module, a) for a in attributes) else None

    def fits(self, name, member):
        """Whether what the tests do with a name can be done with the member of a module."""
        if not all(hasattr(member, a) for a in self.attributes.get(name, ())):
            return False
        if isinstance(member, type):
            for variable in (*self.made.get(name, ()), name + "()"):
                if not all(hasattr(member, a) for a in self.attributes.get(variable, ())):
                    return False
        elif not callable(member):
            return name not in self.called
        return all(_can_be_called(member, call) for call in self.called.get(name, ()))

    def subjects(self, members, others):
        """Those of `members` that some assert tests by itself: nothing else in it comes from the solution."""
        told = set(others) | self.unsure
        for _ in self.assigned:  # what comes from what comes from the solution, until nothing is added
            before = len(told)
            for names, value in self.assigned:
                if _names([value]) & told:
                    told |= names
            if len(told) == before:
                break
        subjects = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Assert):
                named = _names([node.test])
                alone = named & members
                if len(alone) == 1 and not named & told:
                    subjects |= alone
        return subjects


def _names(nodes):
    """All names that stand in some expressions."""
    names = set()
    for node in nodes:
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                names.add(part.id)
    return names


def _free(table):
    """Names that a text takes from outside: read in some scope and bound in none that this scope sees."""
    free = set()
    at_top = set()
    for symbol in table.get_symbols():
        if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace():
            at_top.add(symbol.get_name())
    tables = [table]
    while tables:
        scope = tables.pop()
        tables += scope.get_children()
        for symbol in scope.get_symbols():
            reaches_top = scope is table or symbol.is_global()
            if symbol.is_referenced() and reaches_top and symbol.get_name() not in at_top:
                free.add(symbol.get_name())
    return {name for name in free if not hasattr(builtins, name)}


def _can_be_called(member, call):
    """Whether a call has the arguments that a function takes; True where that cannot be told."""
    stars = [a for a in call.args if isinstance(a, ast.Starred)] or [
        k for k in call.keywords if k.arg is None
    ]
    if stars:
        return True
    inspect = importlib.import_module("inspect")
    try:
        signature = inspect.signature(member)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*call.args, **{k.arg: k.value for k in call.keywords})
    except TypeError:
        return False
    return True
