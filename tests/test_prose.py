"""The check of the project's language finds each retired name, word and construction."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import prose

# A sentence for each pattern in tools/prose.toml, in the order of the patterns.
SENTENCES = [
    ("Whoever sends the request gets a response.", "Whoever"),
    ("The caller, whomever it serves, gets a response.", "whomever"),
    ("Then nobody gets in.", "nobody"),
    ("No one reads this header.", "No one"),
    ("If somebody sends two headers, both are ignored.", "somebody"),
    ("The token of someone else is ignored.", "someone"),
    ("Anybody can send this header.", "Anybody"),
    ("The list applies to everybody.", "everybody"),
    ("This applies to everyone.", "everyone"),
    ("Whatever the header contains, the request is rejected.", "Whatever"),
    ("The token is sent to these hosts and no others.", "others"),
    ("The parameter stands twice in the entry.", "stands"),
    ("This entry stands for all hosts.", "stands"),
    ("The token stood in the first header.", "stood"),
    ("These headers are no credentials.", "are no "),
    ("A text that is no token is ignored.", "is no "),
    ("The server answers with 401.", "answers"),
    ("Wait for the answer.", "answer"),
    ("The verdict is cached.", "verdict"),
    ("Only one question is sent.", "question"),
    ("The keys are fetched anew.", "anew"),
    ("If the server is out, requests fail.", "is out"),
    ("If both servers are out, requests fail.", "are out"),
    ("Instrumentation alone does not do.", "does not do"),
    ("This does not belong into an origin.", "belong into"),
    ("The second search is twice as dear.", "twice as dear"),
    ("The token is checked at the door.", "at the door"),
    ("The canary came through.", "canary"),
    ("An error falls to the strict side.", "strict side"),
]


@pytest.mark.parametrize("kind", ["docstring", "comment", "message", "page"])
@pytest.mark.parametrize(("sentence", "found"), SENTENCES, ids=[sentence[:25].rstrip() for sentence, _ in SENTENCES])
def test_a_forbidden_word_is_found(tmp_path: Path, kind: str, sentence: str, found: str) -> None:
    """One word in a docstring, a comment, a message or a page is enough."""
    sources = {
        "docstring": f'def respond() -> None:\n    """Return.\n\n    {sentence}\n    """\n',
        "comment": f"def respond() -> None:\n    # {sentence}\n    return None\n",
        "message": f'def respond() -> None:\n    raise ValueError("{sentence}")\n',
        "page": f"# Responses\n\n{sentence}\n",
    }
    file = tmp_path / ("responses.md" if kind == "page" else "responses.py")
    file.write_text(sources[kind])

    assert [finding.found for finding in prose.check(file)] == [found]


def test_each_pattern_has_a_sentence() -> None:
    """A pattern that no sentence matches could be wrong."""
    sentences = [sentence for sentence, _ in SENTENCES]
    unused = [rule.pattern.pattern for rule in prose.WORDS if not any(map(rule.pattern.search, sentences))]

    assert unused == []


@pytest.mark.parametrize("start", ["Give", "Gives", "Say", "Says", "Tell", "Tells"])
def test_a_docstring_starts_with_another_verb(tmp_path: Path, start: str) -> None:
    """The words are allowed elsewhere in a docstring."""
    file = tmp_path / "responses.py"
    file.write_text(f'def respond() -> None:\n    """{start} the status, and {start.lower()} why."""\n')

    assert [finding.found for finding in prose.check(file)] == [start]


@pytest.mark.parametrize("name", prose.NAMES)
@pytest.mark.parametrize(
    "source",
    ["{} = 1\n", "def {}() -> None: ...\n", "import {}\n", "from package import {} as other\n", "print(package.{})\n"],
    ids=["variable", "function", "module", "import", "attribute"],
)
def test_a_retired_name_is_found(tmp_path: Path, name: str, source: str) -> None:
    """A name is found as any kind of identifier."""
    file = tmp_path / "responses.py"
    file.write_text(source.format(name))

    assert [finding.found for finding in prose.check(file)] == [name]


@pytest.mark.parametrize("name", prose.NAMES)
def test_a_retired_name_is_found_in_the_code_of_a_page(tmp_path: Path, name: str) -> None:
    """In prose, most of the names are ordinary words."""
    file = tmp_path / "responses.md"
    file.write_text(f"Call `package.{name}()`.\n")

    assert name in [finding.found for finding in prose.check(file)]


@pytest.mark.parametrize(
    "source",
    [
        '"""See the standards track, and the frequently asked questions."""\n',
        "# A question mark starts the query.\n",
        'NAMES = ("answer", "question", "others")\n',
        '"""Return whether the token is no longer valid."""\n',
        '"""There are no keys."""\n',
    ],
    ids=["terms", "mark", "data", "longer", "there"],
)
def test_standard_phrases_and_data_are_allowed(tmp_path: Path, source: str) -> None:
    """Strings of one word are data: names, keys and claims."""
    file = tmp_path / "responses.py"
    file.write_text(source)

    assert prose.check(file) == []


def test_the_program_prints_findings_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`make check` stops at the first program that fails."""
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text("The server responds.\n")
    bad.write_text("The server responds.\nThe server answers.\n")

    assert prose.main([str(good)]) == 0
    assert capsys.readouterr().out == ""
    assert prose.main([str(good), str(bad)]) == 1
    assert capsys.readouterr().out == f"{bad}:2: 'answers': write response, result, error; respond, return\n"
