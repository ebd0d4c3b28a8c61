"""Every public name has an example in its docstring, and all examples do what they say."""

import doctest
import inspect
import re
from pathlib import Path

import pytest
from small_runs import use_small

import jaxpoison

pytestmark = [
    pytest.mark.mixes_types,
    # That of most examples is not trained.
    pytest.mark.filterwarnings("ignore:the network classifies"),
]
REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
# Constants, whose types would be documented.
CONSTANTS = {"DETECTORS", "TURNS_FROM"}
# What is shown must not run in a process that has made its devices, or downloads data.
SHOWN = {"load_tfds", "use_one_device_per_core"}
NAMES = sorted(set(jaxpoison.__all__) - CONSTANTS)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An empty directory, and jobs with a small network on few images."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("JAXPOISON_CACHE", str(folder / "cache"))
        use_small(patch)
        yield folder


@pytest.fixture(scope="module")
def beginning(place):
    """What stands before all examples on the first page of the reference."""
    (code,) = re.findall(r"```python\n(.*?)```", (REFERENCE / "index.md").read_text(), re.DOTALL)
    scope = {"__name__": "examples"}
    exec(code, scope)
    return scope


def examples_of(name):
    """Of a docstring and those of its methods."""
    found = inspect.unwrap(getattr(jaxpoison, name))
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for test in finder.find(found, name) if test.examples]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_does_what_it_says(name, beginning):
    tests = examples_of(name)
    assert tests, f"{name} has no example"
    skipped = any("+SKIP" in each.source for test in tests for each in test.examples)
    assert skipped == (name in SHOWN)
    for test in tests:
        said = []
        test.globs = dict(beginning)
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        runner.run(test, out=said.append)
        assert not runner.failures, "".join(said)


def test_the_reference_has_every_public_name_once():
    listed = [
        name
        for page in REFERENCE.glob("*.md")
        for name in re.findall(r"^::: jaxpoison\.(\w+)$", page.read_text(), re.MULTILINE)
    ]
    assert sorted(listed) == sorted(jaxpoison.__all__)
