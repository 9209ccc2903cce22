"""The tests of a text, collected and run: none is left out without a word.

Standard library only, any Python from 3.8 on. Functions named test…, also async ones and generators, methods
of that name in classes, as pytest collects them, and unittest's cases. What cannot run here (arguments that
pytest's fixtures would give) is a Fault that names it, and so is a test of the text that did not begin.
"""

import ast
import importlib
import types

from lgrpo_lite.rewards.leaning import Fault

RAN = "__ran__"  # in the tests' module: told by each test that it began
ANY_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
RUNNERS = (("unittest", "main"), ("pytest", "main"), ("sys", "exit"))


def read(text):
    """The text's tree, to be compiled, and the names of its tests; each of them tells RAN that it began.

    Fault: no Python, or tests that nothing here would run.
    """
    try:
        tree = ast.parse(text, "tests.py")
        tree.body = _without_guard(tree.body)
        loaded = _loaded(tree)
        names = []
        for node in _statements(tree.body):
            if isinstance(node, ast.ClassDef):
                names += _of_class(node, "")
                if not _is_of_tests(node):
                    _demand_used(node, loaded)
            elif isinstance(node, ANY_FUNCTION):
                _demand_called(node, loaded)
                if node.name.startswith("test"):
                    names.append(_marked(node, ""))
        _demand_one_each(tree.body, loaded)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Fault(f"the tests are no Python: {error}") from None
    ast.fix_missing_locations(tree)
    return tree, names


def _without_guard(body):
    """What stands under `if __name__ == "__main__"` in its place, without what starts a test runner."""
    kept = []
    for node in body:
        test = node.test if isinstance(node, ast.If) else None
        guard = (
            isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and test.left.id == "__name__"
        )
        if guard:
            kept += [statement for statement in node.body if not _starts_runner(statement)]
        elif not _starts_runner(node):
            kept.append(node)
    return kept


def _starts_runner(statement):
    """unittest.main(), pytest.main(…), sys.exit(…)."""
    called = statement.value.func if isinstance(getattr(statement, "value", None), ast.Call) else None
    if not isinstance(called, ast.Attribute) or not isinstance(called.value, ast.Name):
        return False
    return (called.value.id, called.attr) in RUNNERS


def _loaded(tree):
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _statements(body):
    """Of a module: also those under if, try, for and with, but not those of functions and classes."""
    found = []
    for node in body:
        found.append(node)
        if isinstance(node, (ast.ClassDef, *ANY_FUNCTION)):
            continue
        for part in ("body", "orelse", "finalbody"):
            found += _statements(getattr(node, part, []))
        for handler in getattr(node, "handlers", []):
            found += _statements(handler.body)
    return found


def _is_of_tests(node):
    """pytest's classes by name, unittest's by what they are made from, and any with a method test_…"""
    bases = [getattr(base, "attr", getattr(base, "id", "")) for base in node.bases]
    if node.name.startswith("Test") or any(base.endswith(("TestCase", "Tests", "Test")) for base in bases):
        return True
    return any(isinstance(part, ANY_FUNCTION) and part.name.startswith("test_") for part in node.body)


def _of_class(node, outer):
    names = []
    if not _is_of_tests(node):
        return names
    path = f"{outer}{node.name}."
    for part in _statements(node.body):
        if isinstance(part, ast.ClassDef):
            names += _of_class(part, path)
        elif isinstance(part, ANY_FUNCTION) and part.name.startswith("test"):
            _demand_no_arguments(part, path, 0 if _is_static(part) else 1)
            names.append(_marked(part, path))
        elif isinstance(part, ANY_FUNCTION) and part.name == "__init__":
            raise Fault(f"{path[:-1]} (line {node.lineno}) has an __init__, so its tests do not run")
    _demand_one_each(node.body, set(), path)
    return names


def _is_static(node):
    return any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in node.decorator_list)


def _marked(node, path):
    """The name of a test, whose first act is now to tell RAN."""
    name = f"{path}{node.name} (line {node.lineno})"
    call = ast.Call(func=ast.Name(id=RAN, ctx=ast.Load()), args=[ast.Constant(value=name)], keywords=[])
    node.body.insert(0, ast.copy_location(ast.Expr(value=call), node.body[0]))
    if isinstance(node, ast.AsyncFunctionDef) and any(isinstance(n, ast.Yield) for n in ast.walk(node)):
        raise Fault(f"{name} is an async generator, which no test can be")
    return name


def _demand_no_arguments(node, path, own):
    given = node.args
    positional = [*getattr(given, "posonlyargs", []), *given.args][own:]
    needed = positional[: max(0, len(positional) - len(given.defaults))]
    needed += [arg for arg, default in zip(given.kwonlyargs, given.kw_defaults) if default is None]  # noqa: B905
    if needed:
        what = ", ".join(arg.arg for arg in needed)
        raise Fault(
            f"{path}{node.name} (line {node.lineno}) takes {what}, which nothing gives: no fixtures here"
        )


def _demand_called(node, loaded):
    """A function that holds asserts is a test, or is called by one."""
    if node.name in loaded or node.name.startswith(("setup", "teardown", "setUp", "tearDown")):
        return
    if node.name.startswith("test"):
        _demand_no_arguments(node, "", 0)
    else:
        _demand_used(node, loaded)


def _demand_used(node, loaded):
    """Of a function or a class that is none of the tests: what it asserts is tested where it is used."""
    if node.name not in loaded and any(isinstance(part, ast.Assert) for part in ast.walk(node)):
        raise Fault(f"{node.name} (line {node.lineno}) holds asserts, and the tests never call it")


def _demand_one_each(body, loaded, path=""):
    """Of two tests with one name Python forgets the first."""
    seen = set()
    for node in body:
        if not isinstance(node, (ast.ClassDef, *ANY_FUNCTION)) or not node.name.startswith(("test", "Test")):
            continue
        if getattr(node, "decorator_list", []):
            continue  # the other half of a property
        if node.name in seen and node.name not in loaded:
            raise Fault(
                f"{path}{node.name} stands there twice (line {node.lineno}), and the first never runs"
            )
        seen.add(node.name)


# ------------------------------------------------------------------------------------------- running them


def run(module, names, ran):
    """Run what `module` has collected. Raises what the first test that fails raises.

    `names`: of all tests, `ran`: of those that began. Fault: one did not.
    """
    hooks = module.__dict__
    _call(hooks.get("setup_module"), module)
    for name, value in list(hooks.items()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if isinstance(value, type):
            _run_class(value)
        elif name.startswith("test") and isinstance(value, types.FunctionType) and not _needs(value):
            _call(hooks.get("setup_function"), value)
            _finish(value())
            _call(hooks.get("teardown_function"), value)
    _call(hooks.get("teardown_module"), module)
    left_out = [name for name in names if name not in ran]
    if left_out:
        raise Fault(f"not run: {', '.join(left_out)[:200]}")


def _needs(function):
    """Whether it cannot be called without arguments: the tests call it themselves then."""
    code = function.__code__
    positional = code.co_argcount - len(function.__defaults__ or ())
    return positional > 0 or code.co_kwonlyargcount > len(function.__kwdefaults__ or ())


def _call(hook, *given):
    """A hook, with as many arguments as it takes; None: there is none."""
    if hook is None:
        return
    function = getattr(hook, "__func__", hook)
    takes = function.__code__.co_argcount - (1 if hasattr(hook, "__self__") else 0)
    _finish(hook(*given[:takes]))


def _finish(result):
    """Run what a call has only begun: a coroutine, or a generator, whose yielded calls are tests."""
    if isinstance(result, types.CoroutineType):
        importlib.import_module("asyncio").run(result)
    elif isinstance(result, types.GeneratorType):
        for step in result:
            if isinstance(step, tuple) and step and callable(step[0]):
                _finish(step[0](*step[1:]))


def _run_class(kind):
    tests = []
    for parent in reversed(kind.__mro__):
        for name in vars(parent):
            if name.startswith("test") and callable(getattr(kind, name, None)) and name not in tests:
                tests.append(name)
    inner = [
        v for v in vars(kind).values() if isinstance(v, type) and v.__qualname__.startswith(kind.__qualname__)
    ]
    named = kind.__name__.startswith("Test") or any(name.startswith("test_") for name in tests)
    case = hasattr(kind, "assertEqual") and hasattr(kind, "setUpClass")
    if not named and not (case and hasattr(kind, "runTest")):
        return
    for value in inner:
        _run_class(value)
    skipped = [name for name in tests if getattr(getattr(kind, name), "__unittest_skip__", False)]
    if skipped or getattr(kind, "__unittest_skip__", False):
        raise Fault(f"not run: {kind.__name__} {', '.join(skipped)} is skipped")
    if case:
        _run_case(kind)
        return
    _call(getattr(kind, "setup_class", None), kind)
    for name in tests:
        made = kind()
        method = getattr(made, name)
        _call(getattr(made, "setup_method", None), method)
        _finish(method())
        _call(getattr(made, "teardown_method", None), method)
    _call(getattr(kind, "teardown_class", None), kind)


def _run_case(kind):
    unittest = importlib.import_module("unittest")
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(kind).run(result)
    failed = result.errors + result.failures
    if failed or result.unexpectedSuccesses or result.skipped:
        said = failed[0][1] if failed else "skipped, or passed though it should not"
        raise AssertionError(f"{kind.__name__}: {said[-200:]}")
