"""Hostile images are refused or used as far as they go; and the fuzzer sees what goes wrong."""

import logging
import random
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from daxfs.fs.blockmap import BlockMap
from daxfs.fs.super import FileSystem
from daxfs.fsck import checker
from daxfs.journal import undo
from daxfs.ondisk import layout, mapentry
from daxfs.testing import hostile, mutations
from daxfs.testing.commands.main import main
from daxfs.testing.fuzz import fuzz
from daxfs.testing.guided import fuzz_guided
from daxfs.testing.hostile import Bench, ByteDice, Case
from daxfs.testing.hostile_use import DATA, Failure, Stores
from daxfs.testing.outcome import Outcome
from daxfs.testing.specimens import NAMES, STATE_WORDS, fields_of, specimen

SEED = "daxfs"


@pytest.fixture
def bench() -> Iterator[Bench]:
    log = logging.getLogger("daxfs")
    handlers, propagate = log.handlers[:], log.propagate
    hostile.limit_time()
    with Bench() as made:
        yield made
    log.handlers[:], log.propagate = handlers, propagate


def assert_none_fails(outcome: Outcome) -> None:
    print(f"seed {outcome.figures.get('seed')}: {outcome.to_json()}")
    assert outcome.failures == []


# --- the runs ------------------------------------------------------------------------------------


@pytest.mark.timeout(1800)
def test_20_000_hostile_images() -> None:
    outcome = fuzz(seed=SEED, images=20_000)
    assert_none_fails(outcome)
    assert outcome.figures["images"] == 20_000
    for name in ("repaired", "refused", "met_damage", "no_super_block"):
        assert int(outcome.figures[name]) > 400, f"{name}: the images are too tame"
    assert float(outcome.figures["peak_growth_mib"]) < 128


@pytest.mark.mount
@pytest.mark.timeout(900)
def test_40_hostile_images_with_real_mounts() -> None:
    outcome = fuzz(seed=SEED, images=40, mount=True)
    assert_none_fails(outcome)
    assert outcome.figures["images"] == 40
    assert int(outcome.figures["mounts"]) > 20


@pytest.mark.long
@pytest.mark.timeout(12 * 3600)
def test_1_000_000_hostile_images() -> None:
    assert_none_fails(fuzz(seed=f"{SEED} long", images=1_000_000))


@pytest.mark.parametrize("case", ["2026.83999/0", "2029.52764/1", "2031.96216/2"])
def test_a_hostile_image_that_once_failed(case: str) -> None:
    with Bench() as bench:
        assert bench.fails(Case.parse(case)) is None


@pytest.mark.long
@pytest.mark.mount
@pytest.mark.timeout(6 * 3600)
def test_2_000_hostile_images_with_real_mounts() -> None:
    assert_none_fails(fuzz(seed=f"{SEED} long", images=2_000, mount=True))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed")
def test_a_search_guided_by_coverage() -> None:
    outcome = fuzz_guided(seconds=600)
    assert_none_fails(outcome)
    assert int(outcome.figures["kept_in_corpus"]) > 200


# --- every field is changed ----------------------------------------------------------------------


def structures() -> list[tuple[str, Any]]:
    """Every dtype and struct of which an image is made."""
    return [
        (f"{module.__name__}.{name}", value)
        for module in (layout, mapentry, undo)
        for name, value in vars(module).items()
        if isinstance(value, (np.dtype, struct.Struct)) and not name.startswith("_")
    ]


def test_every_structure_of_the_format_has_its_places() -> None:
    """A dtype that is added must be given places in specimens.py; its fields then come along."""
    found = [list(fields) for name in NAMES for fields in specimen(name).places.values()]
    for name, structure in structures():
        fields = [field for field, _, _ in fields_of(structure)]
        if name.endswith(("INODE_STRUCT", "DIRENT_HEADER")):
            continue  # other forms of INODE_DTYPE and DIRENT_DTYPE
        assert any(set(fields) <= set(known) for known in found), name


def test_fields_cover_their_structure() -> None:
    for name, structure in structures():
        fields = fields_of(structure)
        size = structure.itemsize if isinstance(structure, np.dtype) else structure.size
        assert sum(length for _, _, length in fields) == size, name
        ends = [offset + length for _, offset, length in fields]
        assert [offset for _, offset, _ in fields[1:]] == ends[:-1], name


def test_every_field_is_changed() -> None:
    wanted = {
        f"field {structure}.{field}"
        for name in NAMES
        for structure, fields in specimen(name).places.items()
        for field in fields
    }
    dice = random.Random(1)
    for _ in range(200_000):
        if not wanted:
            break
        wanted.discard(mutations.choose(specimen(dice.choice(NAMES)), dice).kind)
    assert not wanted


def test_the_state_words_are_known() -> None:
    assert len(STATE_WORDS) == 5
    assert min(STATE_WORDS.values()) == layout.STATE_OFFSET


@pytest.mark.parametrize("of", ["super", "inode", "journal", "xattr", "bitmap"])
def test_changes_are_sealed(of: str) -> None:
    """After a change with its seal the checksum is right: it is the contents that are believed."""
    cut = specimen("cut")
    structure = {"bitmap": "bitmap"}.get(of, of)
    field = {"super": "created_ns", "inode": "uid", "journal": "old", "xattr": "3I"}.get(of, "bits")
    place = cut.places[structure][field][0]
    old = cut.raw[place.offset : place.offset + place.size]
    mutation = mutations.change(place, bytes(byte ^ 1 for byte in old))
    raw = bytearray(cut.raw)
    mutations.apply(cut, [mutation._replace(seals=frozenset())], raw)
    again = bytearray(raw)
    mutations.apply(cut, [mutation], again)
    changed = [i for i in range(0, len(raw), 4) if raw[i : i + 4] != again[i : i + 4]]
    # A bit of the last attribute's count is not under the checksum of the payload.
    assert len(changed) == (0 if of == "xattr" else 1)


# --- the fuzzer sees ------------------------------------------------------------------------------


def first_failure(bench: Bench, kind: str = "") -> str:
    """What is wrong with the first image that fails, of those with a mutation of *kind*."""
    for number in range(20_000):
        case = Case(f"{SEED}.{number}")
        if not any(mutation.kind.startswith(kind) for mutation in case.build()[1]):
            continue
        message = bench.fails(case)
        if message is not None:
            return message
    raise AssertionError("nothing was found")


def test_a_wrong_exception_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(self: Any, value: int, level: int, is_root: bool = False) -> int:
        return mapentry.block_of(value)

    monkeypatch.setattr(BlockMap, "_check", check)
    message = first_failure(bench)
    assert "ValueError" in message or "OverflowError" in message, message


def test_an_endless_walk_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockMap, "_see", lambda self, seen, block: None)
    monkeypatch.setattr(hostile, "CPU_SECONDS_MAX", 1.0)
    assert "processor time" in first_failure(bench, "bomb")


def test_growth_of_memory_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile._Trial, "run", lambda self: len(b"x" * (500 << 20)))
    assert "MiB of memory" in first_failure(bench)


def test_values_that_stat_cannot_carry_are_seen(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(ino: int, raw: bytes | memoryview) -> tuple[int, ...]:
        return layout.INODE_STRUCT.unpack_from(raw)

    monkeypatch.setattr(layout, "decode_inode", decode)
    assert "stat of" in first_failure(bench, "field inode.mode")


def test_damage_that_is_not_marked_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FileSystem, "report_corruption", lambda self, error: None)
    assert "the state is" in first_failure(bench)


def test_an_incomplete_repair_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker.links, "check", lambda context: None)
    assert first_failure(bench, "field inode.nlink")


def test_stores_outside_of_their_regions_are_seen() -> None:
    sb = specimen("clean").sb
    stores = Stores(sb)
    stores.on_store(layout.JOURNAL_SEQ_OFFSET, bytes(8))
    stores.on_store(sb.data_start * 4096, DATA[:64])
    stores.on_store(sb.journal_start * 4096, DATA[:64])
    stores.on_discard(sb.data_start * 4096, 4096)
    for offset, data in (
        (0, bytes(8)),
        (layout.JOURNAL_SEQ_OFFSET, bytes(16)),
        (sb.data_end * 4096 - 8, bytes(16)),
        (sb.data_end * 4096, bytes(8)),
        (sb.inode_start * 4096, DATA[:64]),
    ):
        with pytest.raises(Failure):
            stores.on_store(offset, data)
    with pytest.raises(Failure):
        stores.on_discard(sb.bitmap_start * 4096, 4096)


def test_a_worker_that_dies_is_a_failure_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(self: Bench, case: Case) -> None:
        if case.seed.endswith(".7"):
            raise SystemExit(3)
        self.tally["images"] += 1

    monkeypatch.setattr(Bench, "run", run)
    outcome = fuzz(seed="s", images=20, jobs=2)
    assert len(outcome.failures) == 1
    assert "--replay s.7" in outcome.failures[0]
    assert int(outcome.figures["images"]) >= 10 + 6


def test_a_failing_image_is_reduced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = next(s for s in map(str, range(999)) if len(Case(s).build()[1]) > 4)

    def run(self: Bench, case: Case) -> None:
        only = case.only if case.only is not None else range(99)
        if {1, 3} <= set(only):
            raise Failure("both")

    monkeypatch.setattr(Bench, "run", run)
    assert bench.reduce(Case(seed)) == Case(seed, (1, 3))


# --- names of images ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [Case("7.12"), Case("a", (0,)), Case("x00ff10", ()), Case("x")])
def test_a_name_means_one_image(case: Case) -> None:
    assert Case.parse(str(case)) == case
    first, again = (c.build() for c in (case, Case.parse(str(case))))
    assert first[0] is again[0]
    assert first[1] == again[1]
    assert first[2].random() == again[2].random()


@pytest.mark.parametrize("seed", ["x", "x1", "a/b"])
def test_a_seed_that_no_name_can_hold_is_refused(seed: str) -> None:
    result = CliRunner().invoke(main, ["fuzz", "--images", "2", "--seed", seed])
    assert result.exit_code == 2
    assert f"--seed {seed}" in result.output


def test_bytes_decide_and_zeroes_follow() -> None:
    dice = ByteDice(b"\x05\x00\x80")
    assert dice.getrandbits(4) == 5
    assert dice.random() == 0.5
    assert dice.getrandbits(64) == 0
    assert ByteDice(b"").choice("abc") == "a"


def test_a_sound_image_is_no_failure(bench: Bench) -> None:
    """All that is done with a hostile image succeeds on a sound one."""
    for number in range(60):
        bench.run(Case(str(number), ()))
    assert bench.tally["images"] == 60
    assert bench.tally["met_damage"] == bench.tally["no_super_block"] == 0
