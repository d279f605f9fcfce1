"""Every public callable x argument x a list of values that no argument could be: it works, or the library says in a
sentence of its own which argument is wrong."""

import importlib
import inspect
import random
import re
import traceback
import warnings

import pytest
import torch
from public import PUBLIC, WRONG

# What a function given by the user raises, or makes of its arguments, is its own affair.
FUNCTIONS = ("kernel", "act", "loss", "lagrangian", "layer", "model", "module", "norm", "activation", "transform",
             "where", "inferer", "conv", "generators")  # fmt: skip
# Messages may call an argument by what it is about.
ALSO = {"name": "generators", "example_shape": "shape", "shape": "input", "input": "f", "f": "x|as input",
        "x": "as input", "phi": "input", "volume": "input of shape|as input", "current": "phi"}  # fmt: skip
# Results and tables, which nobody calls.
NOT_CALLED = {"Algebra", "Alignment", "Audit", "Layer", "Comparison", "Explanation", "GConv", "GridGenerators",
              "Generators", "NoetherGenerators", "Report", "Result", "Robustness", "VariationalStep", "Streamed",
              "Axis", "Plan", "Unscrambled", "StreamExplanation"}  # fmt: skip
PACKAGES = ("", "generators", "convert", "discovery", "physics", "nets", "sharding", "streaming", "regions", "adapters")


def test_the_list_is_complete():
    called = {re.split(r"[.(]", name.split(" ")[0])[0] if name[0].isupper() else name for name in PUBLIC}
    called |= {name.split(".")[-1].split("(")[0] for name in PUBLIC}
    for package in PACKAGES:
        module = importlib.import_module(f"lconv_fast.{package}".rstrip("."))
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value) and not inspect.ismodule(value):
                assert name in called | NOT_CALLED, name


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", PUBLIC)
def test_arguments_that_fit(name):
    call, arguments = PUBLIC[name]
    call(**arguments())


def complaint(call, arguments, names) -> str:
    """'' where the call works or raises the library's own sentence about one of the arguments `names`."""
    try:
        call(**arguments)
        return ""
    except (TypeError, ValueError, RuntimeError, FileNotFoundError) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        own = "/lconv_fast/" in where.filename and "raise" in (where.line or "raise")
        about = [*names, *(ALSO[name] for name in names if name in ALSO)]
        # Two arguments that do not fit each other: the sentence begins with one of them.
        named = any(re.search(rf"\b{name}\b", str(error), re.I) for name in about)
        named = named or re.match(r"\w+", str(error))[0] in arguments
        return "" if own and named else f"{type(error).__name__} at {where.filename}:{where.lineno}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def wrong_values(argument):
    if argument == "batch":  # of the user's model
        return {}
    return {key: value for key, value in WRONG.items() if argument not in FUNCTIONS or not callable(value)}


@pytest.mark.parametrize("name", PUBLIC)
def test_wrong_arguments(name, capfd):
    call, arguments = PUBLIC[name]
    torch.set_num_threads(1)
    found = []
    for argument in arguments():
        for key, value in wrong_values(argument).items():
            said = complaint(call, {**arguments(), argument: value}, [argument])
            if said:
                found.append(f"{argument}={key}: {said[:200]}")
    assert not found, "\n".join(found)


@pytest.mark.full
def test_wrong_arguments_in_pairs(capfd):
    draw, found = random.Random(), []
    taken = {name: [a for a in arguments() if wrong_values(a)] for name, (_, arguments) in PUBLIC.items()}
    names = [name for name, of_name in taken.items() if len(of_name) > 1]
    for _ in range(5000):
        name = draw.choice(names)
        call, arguments = PUBLIC[name]
        chosen = draw.sample(taken[name], 2)
        keys = [draw.choice(list(wrong_values(argument))) for argument in chosen]
        changed = {argument: WRONG[key] for argument, key in zip(chosen, keys, strict=True)}
        said = complaint(call, {**arguments(), **changed}, chosen)
        if said:
            found.append(f"{name}({dict(zip(chosen, keys, strict=True))}): {said[:200]}")
    assert not found, "\n".join(found)
