"""The checks of the exercises: right answers pass, wrong ones are told what is wrong; and the rest.

What the answers are stands in the folder ``answers``.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from answers import ANSWERS, Answer
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output

from minimagen.checks import __main__ as report
from minimagen.checks.exercise import DONE, NOT_YET, WRONG, Exercise, Lesson, Wrong, equal
from tools import make
from tools.make import CARD

ROOT = Path(__file__).parents[1]
EXERCISES, SOLUTIONS = ROOT / "exercises", ROOT / "solutions"
LESSONS: dict[int, Lesson] = {}
for path in sorted(SOLUTIONS.glob("*.ipynb")):
    number = int(path.name[:2])
    LESSONS[number] = importlib.import_module(f"minimagen.checks.lesson_{number:02d}").lesson
    importlib.import_module(f"answers.lesson_{number:02d}")

ALL = [exercise for lesson in LESSONS.values() for exercise in lesson.exercises]
RIGHT = [answer for answer in ANSWERS if answer.words is None]
REJECTED = [answer for answer in ANSWERS if answer.words is not None]
LONG = ("3.6",)  # the check trains networks
every_exercise = pytest.mark.parametrize("exercise", ALL, ids=lambda e: e.number)
every_lesson = pytest.mark.parametrize("number", LESSONS)


def each_of(answers: list[Answer], quick: int) -> pytest.MarkDecorator:
    """A test for each answer. Not slow are those with the first few answers to each exercise."""
    parameters, before = [], Counter[str]()
    for answer in answers:
        number = answer.exercise.number
        slow = number in LONG or before[number] >= quick
        before[number] += 1
        name, marks = f"{number}-{answer.name}", [pytest.mark.slow] if slow else []
        parameters.append(pytest.param(answer, id=name, marks=marks))
    return pytest.mark.parametrize("answer", parameters)


def notebook_of(folder: Path, number: int) -> NotebookNode:
    (path,) = folder.glob(f"{number:02d}_*.ipynb")
    return nbformat.read(path, as_version=4)


def cards(number: int) -> dict[str, re.Match[str]]:
    """The cards of a lesson's exercises, by their numbers."""
    cells = notebook_of(SOLUTIONS, number).cells
    found = [CARD.match(cell.source) for cell in cells if cell.source.startswith("## Exercise")]
    assert all(found), "a card is not of the form that tools/make.py describes"
    return {card["number"]: card for card in found if card is not None}


# --- the checks -----------------------------------------------------------------------------------


@each_of(RIGHT, quick=1)
def test_right_answer_is_accepted(answer: Answer) -> None:
    """However it is written."""
    outcome = answer.exercise.outcome(answer.value)
    assert outcome.status == DONE, outcome.text
    assert outcome.text == f"✓ {answer.exercise.number} {answer.exercise.title}"


@each_of(REJECTED, quick=3)
def test_wrong_answer_is_told_what_is_wrong(answer: Answer) -> None:
    """In words that name the idea, with a place to look at."""
    outcome = answer.exercise.outcome(answer.value)
    assert outcome.status == WRONG, outcome.text
    assert answer.words is not None and answer.words in outcome.text
    assert "What is wrong:  " in outcome.text and "Where to look:  " in outcome.text
    assert "Traceback" not in outcome.text and "assert" not in outcome.text


@every_exercise
def test_enough_answers_were_tried(exercise: Exercise) -> None:
    """At least four wrong ones and two right ones; and every check notices these too."""
    names = [answer.name for answer in ANSWERS if answer.exercise is exercise]
    assert len(set(names)) == len(names)
    assert sum(answer.exercise is exercise for answer in REJECTED) >= 4
    assert sum(answer.exercise is exercise for answer in RIGHT) >= 2


@every_exercise
def test_a_stub_is_not_done_yet(exercise: Exercise) -> None:
    """What the learner starts from is neither wrong nor an error."""

    def stub(*_: object, **__: object) -> None:
        raise NotImplementedError()

    outcome = exercise.outcome(stub)
    assert outcome.status == NOT_YET, outcome.text
    assert outcome.text == f"○ {exercise.number} {exercise.title}: not done yet"


NONSENSE: dict[str, Callable[..., Any]] = {
    "nothing": lambda *_, **__: None,
    "zero": lambda *_, **__: 0.0,
    "a tensor": lambda *_, **__: torch.zeros(2, 3),
    "its first argument": lambda *given, **__: given[0] if given else None,
    "an error": lambda *_, **__: 1 / 0,
}


@every_exercise
def test_nonsense_is_rejected_without_an_error(exercise: Exercise) -> None:
    """Whatever comes back, the check says in words that it is wrong."""
    for name, answer in NONSENSE.items():
        outcome = exercise.outcome(answer)
        assert outcome.status == WRONG, f"{name}: {outcome.text}"


@every_exercise
def test_a_check_is_the_same_each_time(exercise: Exercise) -> None:
    """Its inputs do not depend on the learner's random numbers, nor those on it."""
    value = next(answer.value for answer in REJECTED if answer.exercise is exercise)
    texts, states = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        texts.append(exercise.outcome(value).text)
        states.append(torch.equal(before, torch.get_rng_state()))
    assert texts[0] == texts[1] and all(states)


# --- what they share ------------------------------------------------------------------------------


def test_comparison_says_where_and_by_how_much() -> None:
    """The entry that is most wrong, with both values, shape and precision."""
    found = torch.zeros(2, 3, dtype=torch.float64)
    expected = found.clone()
    expected[1, 2] = 0.25
    with pytest.raises(Wrong) as error:
        equal(found, expected, "an idea", case="six numbers")
    assert error.value.idea == "an idea"
    assert error.value.facts == (
        "Tried with:     six numbers\nExpected:       0.25 at [1, 2] of [2, 3], float64\n"
        "Found:          0"
    )


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "is there a return?"),
        (1.0, "of type float came back"),
        (torch.zeros(3, 2), "wrong shape"),
        (torch.zeros(2, 3, dtype=torch.float16), "float16, where float32 is due"),
        (torch.full((2, 3), torch.nan), "not finite"),
        (torch.ones(2, 3) * 1.001, "an idea"),
    ],
)
def test_comparison_names_what_is_wrong(found: object, words: str) -> None:
    """Type, shape, precision, infinity, and values, each in its own words."""
    with pytest.raises(Wrong, match=re.escape(words)):
        equal(found, torch.ones(2, 3), "an idea")


def test_an_error_in_an_answer_is_told_with_its_line() -> None:
    """The learner's line, and not the libraries' below it."""
    lesson = Lesson(9)
    exercise = lesson.exercise("Any", look="there")(lambda answer: answer(torch.ones(2)))
    outcome = exercise.outcome(lambda x: x @ torch.ones(3))  # this line
    assert outcome.status == WRONG
    assert "your code stopped with RuntimeError" in outcome.text and "# this line" in outcome.text


def test_an_unwritten_method_is_not_an_unwritten_answer() -> None:
    """Only the stub's own NotImplementedError, which has no words, means: not done yet."""
    exercise = Lesson(9).exercise("Any", look="there")(lambda answer: answer()(torch.ones(2)))
    outcome = exercise.outcome(type("Block", (torch.nn.Module,), {}))
    assert outcome.status == WRONG and "forward" in outcome.text


# --- the notebooks --------------------------------------------------------------------------------


def test_there_are_enough_exercises() -> None:
    """Three to six for each of the lessons 01 to 08, and 32 at least."""
    assert list(LESSONS) == list(range(1, 9))
    assert all(3 <= len(lesson.exercises) <= 6 for lesson in LESSONS.values())
    assert len(ALL) >= 32


@every_lesson
def test_every_exercise_has_its_card_stub_and_check(number: int) -> None:
    """Card with two hints and the expected output, folded; then the stub; then its check."""
    lesson, found = LESSONS[number], cards(number)
    numbers = {exercise.number: exercise for exercise in lesson.exercises}
    assert list(found) == list(numbers)
    cells = notebook_of(SOLUTIONS, number).cells
    for at, cell in enumerate(cells):
        card = CARD.match(cell.source) if cell.cell_type == "markdown" else None
        if card is None:
            continue
        exercise = numbers[card["number"]]
        assert card["title"] == exercise.title
        folded = re.findall(
            r"<details><summary>(.+?)</summary>\n\n.+?\n</details>", cell.source, re.S
        )
        assert folded == ["Hint 1", "Hint 2", "Expected output"]
        stub, check = cells[at + 1], cells[at + 2]
        assert '"""' in stub.source and "### BEGIN SOLUTION" in stub.source
        assert check.source.startswith(f"check.{exercise.__name__}(")
    assert sum(cell.source.startswith("check.") for cell in cells) == len(numbers) + 1
    assert [c.source for c in cells if c.cell_type == "code"][-1] == "check.progress()"
    minutes = sum(int(card["minutes"]) for card in found.values())
    stated = re.search(r"\*\*(\w+) exercises, about (\d+) minutes\.", cells[0].source)
    words = ("Three", "Four", "Five", "Six")
    assert stated and stated[1] == words[len(numbers) - 3] and int(stated[2]) == minutes


@every_lesson
def test_every_solution_is_done(number: int) -> None:
    """In the outputs that strict nbval holds the solutions to."""
    notebook = notebook_of(SOLUTIONS, number)
    statuses = report.statuses(notebook)
    assert statuses == {exercise.number: DONE for exercise in LESSONS[number].exercises}


def test_exercises_are_the_solutions_without_the_solutions(tmp_path: Path) -> None:
    """`python tools/make.py exercises` would change nothing."""
    assert make.main(["exercises", str(tmp_path)]) == 0
    made = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.ipynb")}
    there = {path.name: path.read_text(encoding="utf-8") for path in EXERCISES.glob("*.ipynb")}
    assert list(sorted(made)) == sorted(path.name for path in SOLUTIONS.glob("*.ipynb"))
    assert made == there, "run: python tools/make.py exercises"


def test_a_solution_becomes_a_stub() -> None:
    """At its own indent, as often as there is one; a mark without its pair is an error."""
    source = "a = 1\n### BEGIN SOLUTION\nb = 2\n### END SOLUTION\n"
    source += "def f():\n    ### BEGIN SOLUTION\n    return 3\n    ### END SOLUTION"
    stub = "# YOUR CODE HERE\nraise NotImplementedError()"
    inner = stub.replace("raise", "    raise")
    assert make.without_solution(source) == f"a = 1\n{stub}\ndef f():\n    {inner}"
    assert make.without_solution("x = 1\n") == "x = 1\n"
    begin, end = "### BEGIN SOLUTION", "### END SOLUTION"
    for wrong in (begin, end, f"{begin}\n{begin}\n{end}", f"{begin}\n{end}\n{end}"):
        with pytest.raises(ValueError, match=r"SOLUTION|no end"):
            make.without_solution(wrong)


@every_lesson
def test_exercise_notebook_holds_no_solution_and_no_output(number: int) -> None:
    """A stub for each, and nothing of what the learner is to find."""
    notebook = notebook_of(EXERCISES, number)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "SOLUTION" not in text
    assert text.count("# YOUR CODE HERE\n") >= len(LESSONS[number].exercises)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the exercise notebooks, run from top to bottom as they are."""
    from nbclient import NotebookClient

    folder = tmp_path_factory.mktemp("untouched")
    for path in sorted(EXERCISES.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
        nbformat.write(notebook, folder / path.name)
    return folder


@pytest.mark.slow
@every_lesson
def test_untouched_exercises_run_to_the_end(untouched: Path, number: int) -> None:
    """Run All: no error, "not done yet" for each, and a summary at the end."""
    notebook = notebook_of(untouched, number)
    numbers = [exercise.number for exercise in LESSONS[number].exercises]
    assert report.statuses(notebook) == dict.fromkeys(numbers, NOT_YET)
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    assert last.outputs[0].text.startswith(f"0 of {len(numbers)} done.")


# --- python -m minimagen.checks -------------------------------------------------------------------


@pytest.mark.slow
def test_report_over_a_folder(untouched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each notebook, and one for all."""
    assert report.main([str(untouched)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "0 of" in line]) == len(LESSONS) + 1
    assert lines[-1].split() == ["in", "all", "0", "of", str(len(ALL)), "done."]
    assert report.main([str(SOLUTIONS)]) == 0
    assert f"{len(ALL)} of {len(ALL)} done." in capsys.readouterr().out


def solved(number: int, path: Path, stub: str) -> None:
    """Write a notebook with one answer to 1.1, not yet run."""
    cells = ["import torch\nfrom minimagen.checks import lesson_01 as check", stub]
    cells += ["check.noising(noise_batch)", "check.progress()"]
    nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells]), path)


@pytest.mark.slow
def test_report_can_run_the_notebooks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--run believes no stored output, survives an error in the middle, and writes nothing."""
    path = tmp_path / "01_mine.ipynb"
    good = (
        "def noise_batch(x, eps, alpha):\n    alpha = alpha.reshape(-1, 1, 1, 1)\n"
        "    return alpha * x + (1 - alpha**2).sqrt() * eps"
    )
    solved(1, path, good)
    before = path.read_text(encoding="utf-8")
    assert report.main([str(tmp_path)]) == 0
    assert "0 of" in capsys.readouterr().out, "it was not run yet"
    assert report.main(["--run", str(tmp_path)]) == 0
    assert "1 of" in capsys.readouterr().out
    assert path.read_text(encoding="utf-8") == before
    solved(1, path, "1 / 0")
    assert report.main(["--run", str(tmp_path)]) == 0
    assert "0 of" in capsys.readouterr().out


def test_last_outcome_counts() -> None:
    """An exercise that was checked twice is what the second check says."""
    cells = [new_code_cell("from minimagen.checks import lesson_01 as check")]
    for text in ("✗ 1.1 Noise\n  What is wrong: all\n", "✓ 1.1 Noise\n", "✗ 1.2 Cosine\n"):
        cells.append(new_code_cell("check", outputs=[new_output("stream", text=text)]))
    statuses = report.statuses(new_notebook(cells=cells))
    assert statuses["1.1"] == DONE and statuses["1.2"] == WRONG and statuses["1.3"] == NOT_YET


@pytest.mark.parametrize("arguments", [["nowhere"], [str(ROOT / "minimagen")], ["--fast"]])
def test_report_refuses_what_has_no_exercises(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line on stderr names the culprit, and the exit code is 2."""
    try:
        code: object = report.main(arguments)
    except SystemExit as refused:  # argparse's
        code = refused.code
    said = capsys.readouterr()
    assert code == 2 and said.out == ""
    assert arguments[0] in said.err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.processes
def test_report_is_a_module_to_run() -> None:
    """`python -m minimagen.checks`, with the exit code of its function and no traceback."""
    command = [sys.executable, "-m", "minimagen.checks", "nowhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert "nowhere" in done.stderr and "Traceback" not in done.stderr


# --- the table ------------------------------------------------------------------------------------


def test_table_of_exercises_is_up_to_date() -> None:
    """exercises/README.md has what the cards say, and the counts of answers."""
    text = (EXERCISES / "README.md").read_text(encoding="utf-8")
    assert make.with_exercise_table(text) == text, "run: python tools/make.py tables"
