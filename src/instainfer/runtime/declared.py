"""Module style with a snapshot: the globals that the author declares to be the model are taken from the module
that loaded them, and put into a module that runs without the statements that make them."""

from __future__ import annotations

from .snapshot import Refused

TYPE_CHECKING = False  # `typing` and `ast` are not worth their import time in every instance
if TYPE_CHECKING:
    import ast
    from collections.abc import Callable, Iterator
    from types import CodeType, ModuleType

    Values = dict | Callable[[], dict]

HOOK = "__snapshot_values__"  # the global that a statement left out may be replaced by a call of
_MISSING = object()


def code_without(source: bytes, filename: str, names: tuple, hook: str = "") -> CodeType:
    """The module's code without what makes the globals `names`.

    A top-level statement is left out, whole, where it binds, deletes or mentions one of the names anywhere but in
    the body of a function, lambda or class (decorators, defaults, bases and annotations are not body; a
    comprehension's own variable is not the global), or where it calls a function of the file that declares one of
    them `global` or calls such a function in turn. All others stay, with their line numbers: functions and
    classes use the globals that are there when they run. Names in strings (`globals()["model"]`) and star imports
    are not seen, and other names that such a statement binds are lost with it.

    The last statement left out that binds a name is replaced by a call of the global `hook`, where one is given.
    Raises SyntaxError, ValueError.
    """
    import ast

    tree = ast.parse(source, filename)
    wanted = frozenset(names)
    makers = _makers(tree.body, wanted)
    last = -1
    for place, statement in enumerate(tree.body):
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            continue
        found = [binds for name, binds in _names(statement, frozenset(), makers) if name in wanted or not name]
        if found:
            # Not taken away: a string that came to be the first statement would be the docstring.
            tree.body[place] = ast.copy_location(ast.Pass(), statement)
            last = place if any(found) else last
    if hook and last >= 0:
        call = ast.Expr(ast.Call(func=ast.Name(id=hook, ctx=ast.Load()), args=[], keywords=[]))
        tree.body[last] = ast.fix_missing_locations(ast.copy_location(call, tree.body[last]))
    return compile(tree, filename, "exec", dont_inherit=True)


def capture(namespace: dict, names: tuple) -> dict:
    """The declared globals, by name. Raises Refused where one is not there."""
    for name in names:
        if name not in namespace:
            raise Refused(
                "`%s` is declared as part of the model, but is no global once the module has loaded" % name
            )
    return {name: namespace[name] for name in names}


def run(path: str, module: ModuleType, names: tuple, values: Values) -> None:
    """Run the file at `path` in the module's namespace, with `values` for its globals `names`.

    Values are there from the first statement on; those of a function that returns them, from where the file binds
    the last of them: by then its classes are defined, which those values may be of (the module must be in
    sys.modules to be found by unpickling). Raises Refused where something bound a name all the same, and what the
    module or the function raises.
    """
    with open(path, "rb") as file:
        source = file.read()
    namespace = vars(module)
    given: dict = {}

    def bind() -> None:
        namespace.pop(HOOK, None)
        given.update(values() if callable(values) else values)
        namespace.update(capture(given, names))

    later = callable(values)
    code = code_without(source, path, names, HOOK if later else "")
    if later:
        namespace[HOOK] = bind
    else:
        bind()
    exec(code, namespace)
    if namespace.pop(HOOK, None):
        raise Refused(
            "no statement at the top level of the file binds %s" % " or ".join("`%s`" % n for n in names)
        )
    for name in names:
        if namespace.get(name, _MISSING) is not given[name]:
            raise Refused("`%s` is bound by something else than a statement of the file that names it" % name)


def _makers(body: list, wanted: frozenset) -> set:
    """Names of the file's functions that bind one of the names when they are called."""
    import ast

    calls: dict[str, set[str]] = {}
    makers = set()
    for node in _outside_bodies(body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            called = calls.setdefault(node.name, set())
            for part in ast.walk(node):
                if isinstance(part, ast.Global) and not wanted.isdisjoint(part.names):
                    makers.add(node.name)
                elif isinstance(part, ast.Call):
                    called.add(getattr(part.func, "id", ""))
    before = -1
    while before < len(makers):
        before = len(makers)
        makers |= {name for name, called in calls.items() if not makers.isdisjoint(called)}
    return makers


def _outside_bodies(nodes: list) -> Iterator[ast.AST]:
    """Statements, and those inside of `if`, `try`, `with` and loops."""
    import ast

    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            waiting += [part for part in ast.iter_child_nodes(node) if not isinstance(part, ast.expr)]


def _names(node: ast.AST, hidden: frozenset, makers: set) -> Iterator[tuple[str, bool]]:
    """(name, whether it is bound) for each global that running the statement, but no body in it, speaks of; ("",
    True) for a call of a maker. `hidden` are the variables of the comprehensions around it."""
    import ast

    parts = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Name):
        if node.id not in hidden:
            yield node.id, isinstance(node.ctx, ast.Store)
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name, True
        parts = [part for part in parts if part not in node.body]
    elif isinstance(node, ast.Lambda):
        parts = [node.args]
    elif isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
        first = node.generators[0].iter  # the one part that runs outside of it
        yield from _names(first, hidden, makers)
        parts = [part for part in parts if part not in node.generators]
        parts += [part for each in node.generators for part in ast.iter_child_nodes(each) if part is not first]
        targets = [part for each in node.generators for part in ast.walk(each.target)]
        hidden |= {part.id for part in targets if isinstance(part, ast.Name)}
    elif isinstance(node, ast.alias):
        yield node.asname or node.name.partition(".")[0], True
    elif isinstance(node, ast.Global):
        yield from ((name, False) for name in node.names)
    elif isinstance(node, ast.Call) and getattr(node.func, "id", None) in makers:
        yield "", True
    elif isinstance(node, ast.ExceptHandler) or type(node).__name__ in ("MatchAs", "MatchStar", "MatchMapping"):
        bound = getattr(node, "name", None) or getattr(node, "rest", None)
        if bound:
            yield bound, True
    for part in parts:
        yield from _names(part, hidden, makers)
