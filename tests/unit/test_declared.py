"""Which statements make a declared model, and a module run without them."""

from __future__ import annotations

import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from instainfer.runtime import declared
from instainfer.runtime.snapshot import Refused

NAMES = ("model", "tokens")

# Each is one statement; `make` and the like exist only where the statement stays.
LEFT_OUT = {
    "assignment": "model = make()",
    "tuple target": "other, model = make()",
    "starred target": "other, *model = make()",
    "chain": "other = model = make()",
    "annotated": "model: int = make()",
    "only annotated": "model: make",
    "augmented": "model += make()",
    "deleted": "del model, made",
    "walrus": "print(model := make())",
    "walrus in a comprehension": "[model := each for each in make()]",
    "method": "model.eval()",
    "attribute of it": "model.made = 1",
    "item of it": "model[make] = 1",
    "argument": "make(model)",
    "in a formatted string": "make(f'{model}')",
    "what a comprehension goes over": "[model for model in model]",
    "inside a comprehension": "[make(model) for each in ()]",
    "with": "with make():\n model = 1",
    "with as": "with make() as model:\n pass",
    "for": "for model in make():\n pass",
    "loop": "while make():\n tokens = 1",
    "if": "if make():\n pass\nelse:\n model.cuda()",
    "guard": "if __name__ == '__main__':\n make(model)",
    "try": "try:\n made = 1\nexcept make:\n model = None\nfinally:\n make()",
    "except as": "try:\n pass\nexcept make as model:\n pass",
    "match": "match make():\n case [model]:\n  pass",
    "match the rest": "match make():\n case {'a': 1, **model}:\n  pass",
    "match stars": "match make():\n case [1, *model]:\n  pass",
    "import": "import model",
    "import a part": "import model.part",
    "import as": "import make as model",
    "import from": "from make import model",
    "import from as": "from make import it as model",
    "global": "global model",
    "function of that name": "def model(): ...",
    "class of that name": "class tokens: ...",
    "decorator": "@make(model)\ndef made(): ...",
    "default": "def made(x=model): ...",
    "default of a keyword": "def made(*, x=model): ...",
    "annotation": "def made(x: model): ...",
    "base": "class made(make(model)): ...",
    "default of a lambda": "made = lambda x=model: x",
    "function inside if": "if make():\n def made(x=model): ...",
}

STAYS = {
    "function": "def made(x):\n global other\n return model(x)",
    "async function": "async def made(x):\n return await model(x)",
    "function that shadows it": "def made(model):\n tokens = model",
    "lambda": "made = lambda x: model(x)",
    "class body": "class made:\n weight = model\n def f(self): return tokens",
    "attribute of that name": "made = sys.model",
    "keyword": "made = dict(model=1)",
    "string": "made = ['model', 'tokens']",
    "variable of a comprehension": "made = [model for model in ()]",
    "variable of an inner comprehension": "made = [[model for model in ()] for tokens in () if tokens]",
    "import of a part": "import os.path as made",
    "longer name": "made = models = 1",
    "function that would load": "def made():\n global model\n model = 1",
    "function inside if": "if 1:\n def made(): return model",
}


def globals_after(source: str, **given: object) -> dict[str, object]:
    namespace: dict[str, object] = {"sys": types.SimpleNamespace(model=1), **given}
    exec(declared.code_without(source.encode(), "main.py", NAMES), namespace)
    return namespace


@pytest.mark.parametrize("case", LEFT_OUT)
def test_left_out(case: str) -> None:
    compile(LEFT_OUT[case], "case", "exec")  # a case that is no Python would be left out of nothing
    namespace = globals_after(
        "before = 1\n" + LEFT_OUT[case] + "\nafter = 1", model=2, tokens=3
    )  # make() would raise
    assert (namespace["before"], namespace["after"]) == (1, 1)
    assert (namespace["model"], namespace["tokens"]) == (2, 3)
    assert "made" not in namespace


@pytest.mark.parametrize("case", STAYS)
def test_stays(case: str) -> None:
    namespace = globals_after(STAYS[case], model=2, tokens=3)
    assert "made" in namespace
    assert (namespace["model"], namespace["tokens"]) == (2, 3)


def test_a_call_of_what_binds_it_as_a_global_is_left_out() -> None:
    source = """
        def read():
            global model
            model = "loaded"
        def start():
            read()
        def handler(x):
            return model
        if True:
            def again():
                def inner():
                    global tokens
                    tokens = 1
                inner()
        read()
        print(start())
        again()
        kept = [read, start, again]
        answer = handler(1)
    """
    namespace = globals_after(textwrap.dedent(source), model="restored", tokens=2)
    assert (namespace["model"], namespace["tokens"]) == ("restored", 2)
    assert namespace["answer"] == "restored"
    assert len(namespace["kept"]) == 3  # type: ignore[arg-type]  # a list, as written above


def test_docstring_future_and_lines_are_kept() -> None:
    source = '"""doc"""\nfrom __future__ import annotations\nmodel = 1\n\ndef f(x: Nowhere): return 1 / 0\n'
    namespace = globals_after(source)
    assert namespace["__doc__"] == "doc"
    function = namespace["f"]
    assert isinstance(function, types.FunctionType)
    assert function.__annotations__ == {"x": "Nowhere"}
    assert function.__code__.co_firstlineno == 5
    assert function.__code__.co_filename == "main.py"


def test_a_string_after_a_statement_left_out_is_no_docstring() -> None:
    assert globals_after("model = make()\n'about the model'\n").get("__doc__") is None


def test_a_future_import_is_kept_whatever_is_declared() -> None:
    code = declared.code_without(b"from __future__ import annotations\n", "main.py", ("annotations",))
    namespace: dict[str, object] = {}
    exec(code, namespace)
    assert "annotations" in namespace


def test_the_source_may_have_an_encoding_of_its_own() -> None:
    source = "# coding: latin-1\nx = 'é'\n".encode("latin-1")
    namespace: dict[str, object] = {}
    exec(declared.code_without(source, "main.py", NAMES), namespace)
    assert namespace["x"] == "é"


def test_no_python() -> None:
    with pytest.raises(SyntaxError):
        declared.code_without(b"def f(:", "main.py", NAMES)


def test_capture() -> None:
    model = object()
    assert declared.capture({"model": model, "tokens": None, "x": 1}, NAMES) == {"model": model, "tokens": None}
    with pytest.raises(Refused, match="`tokens` is declared as part of the model"):
        declared.capture({"model": model}, NAMES)


# ---- running a module ----

SOURCE = """
class Net:
    pass

def handler(x):
    return model.weight + x

model = Net()
model.weight = 1
after = hasattr(model, "weight")
"""


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    module = types.ModuleType("declared_main")
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def source_file(tmp_path: Path, source: str) -> str:
    path = tmp_path / "main.py"
    path.write_text(source)
    return str(path)


def test_values_are_there_from_the_first_statement_on(tmp_path: Path, module: types.ModuleType) -> None:
    path = source_file(tmp_path, "def handler(x): return model + x\nfirst = handler(1)\nmodel = make()\n")
    declared.run(path, module, ("model",), {"model": 10})
    assert module.handler(2) == 12
    assert module.first == 11
    assert declared.HOOK not in vars(module)


def test_values_of_a_function_may_be_of_the_modules_own_classes(tmp_path: Path, module: types.ModuleType) -> None:
    def values() -> dict[str, object]:
        net = sys.modules["declared_main"].Net()
        net.weight = 40
        return {"model": net}

    declared.run(source_file(tmp_path, SOURCE), module, ("model",), values)
    assert module.handler(2) == 42
    assert type(module.model) is module.Net
    assert not hasattr(module, "after")  # its statement mentions the model
    assert declared.HOOK not in vars(module)


def test_they_come_where_the_last_of_them_is_bound(tmp_path: Path, module: types.ModuleType) -> None:
    source = "model = 1\nseen = 'tokens' in globals()\ntokens = 2\nnow = 'model' in globals()\nprint(model)\n"
    declared.run(source_file(tmp_path, source), module, NAMES, lambda: {"model": 3, "tokens": 4})
    assert (module.seen, module.now, module.model, module.tokens) == (False, True, 3, 4)


@pytest.mark.parametrize("line", ["globals()['model'] = 1", "from declared_other import *", "bind()"])
def test_what_binds_a_name_unseen(tmp_path: Path, module: types.ModuleType, line: str) -> None:
    other = types.ModuleType("declared_other")
    other.model = 1  # type: ignore[attr-defined]  # a module made by hand
    sys.modules["declared_other"] = other
    source = "def bind():\n vars()\n globals().update(model=1)\nmodel = 2\n" + line
    try:
        with pytest.raises(Refused, match="`model` is bound by something else"):
            declared.run(source_file(tmp_path, source), module, ("model",), {"model": 3})
    finally:
        del sys.modules["declared_other"]


def test_a_file_that_binds_none_of_them(tmp_path: Path, module: types.ModuleType) -> None:
    with pytest.raises(Refused, match="no statement at the top level of the file binds `model` or `tokens`"):
        declared.run(source_file(tmp_path, "print(model)\n"), module, NAMES, lambda: {"model": 3, "tokens": 4})


@pytest.mark.parametrize("later", [False, True])
def test_a_value_that_is_not_there(tmp_path: Path, module: types.ModuleType, later: bool) -> None:
    values = {"model": 3}
    with pytest.raises(Refused, match="`tokens`"):
        declared.run(source_file(tmp_path, "model = 1"), module, NAMES, (lambda: values) if later else values)


def test_what_the_module_raises_comes_through(tmp_path: Path, module: types.ModuleType) -> None:
    path = source_file(tmp_path, "model, config = make()\nsize = config['size']\n")
    with pytest.raises(NameError, match="config"):
        declared.run(path, module, ("model",), {"model": 1})
