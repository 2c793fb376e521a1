"""Each line of an image's metadata spoiled once: the right data or an error, whatever the bytes."""

import pytest
from click.testing import CliRunner

from daxfs.pmem.image import Image
from daxfs.testing import poison
from daxfs.testing.commands.main import main
from daxfs.testing.commands.poison import run
from daxfs.testing.jobs import processors
from daxfs.testing.outcome import Outcome

SEED = 5


@pytest.fixture(scope="module")
def subjects() -> dict[str, poison.Subject]:
    return poison.subjects()


def check(outcome: Outcome) -> None:
    for name, value in outcome.figures.items():
        print(name, value)
    assert outcome.failures == []
    assert "bad block: unnoticed" not in outcome.figures


def test_each_line_spoiled_once_gives_what_was_there_or_an_error() -> None:
    outcome = run(seed=SEED, jobs=processors(), ways=("bad block", "garbage"))
    check(outcome)
    assert int(outcome.figures["lines"]) > 1300
    assert int(outcome.figures["cases"]) > 1500
    assert int(outcome.figures["bad block: errors"]) > 100


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_lines_spoiled_in_each_way_for_some_minutes() -> None:
    check(run(seed=SEED + 1, jobs=processors(), minutes=10))


def test_every_kind_of_metadata_is_among_the_lines(subjects: dict[str, poison.Subject]) -> None:
    kinds = {line.what for subject in subjects.values() for line in subject.lines}
    assert kinds == {
        *("super block", "backup super block", "state words", "block bitmap", "inode"),
        *("map node", "directory", "attributes", "symbolic link", "journal"),
    }


@pytest.mark.parametrize("what", ["inode", "map node", "directory", "attributes", "symbolic link"])
def test_a_filesystem_that_reads_bad_blocks_is_found_out(
    what: str, subjects: dict[str, poison.Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tester is not blind: with the checks off, what it reads is wrong."""
    monkeypatch.setattr(Image, "check_readable", lambda self, offset, length: None)
    monkeypatch.setattr(
        Image, "pread_around", lambda self, offset, length: (self._pread(offset, length), [])
    )
    cases = [
        case
        for case in poison.cases({"clean": subjects["clean"]}, ("bad block",), SEED)
        if case.line.what == what
    ]
    verdicts = [poison.run_case(subjects["clean"], case) for case in cases]
    if what in ("directory", "symbolic link"):
        assert any(verdict.failure for verdict in verdicts)
    else:
        assert any(verdict.result != "right" for verdict in verdicts)


def test_an_error_that_damage_does_not_explain_is_a_failure(
    subjects: dict[str, poison.Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*words: object) -> None:
        raise IndexError("out of range")

    case = next(poison.cases({"clean": subjects["clean"]}, ("garbage",), SEED))
    assert not poison.run_case(subjects["clean"], case).failure
    monkeypatch.setattr(poison, "read_tree", explode)
    # The super block comes first, and is refused: take a line behind it.
    case = next(
        case
        for case in poison.cases({"clean": subjects["clean"]}, ("garbage",), SEED)
        if case.line.what == "inode"
    )
    assert "IndexError: out of range" in poison.run_case(subjects["clean"], case).failure


def test_the_command_says_how_it_is_called() -> None:
    result = CliRunner().invoke(main, ["poison", "--help"])
    assert result.exit_code == 0
    assert "scripts/crash-test poison --minutes 10 --seed 7" in result.output
