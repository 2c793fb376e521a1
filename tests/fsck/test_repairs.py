"""Corrupt, detect, repair, clean: for everything that the format can get wrong."""

import re
import stat
import struct

import pytest
from damage import CRED, Damaged, Found, mounted
from damages import (
    CASES,
    FIELDS,
    Case,
    entry_flags,
    entry_outside,
    file_lost,
    folder_lost,
    journal,
    links_flipped_and_folder_lost,
    name_twice,
    node_as_only_page,
    page_of_chunk,
    parent,
    root_missing,
    super_magic,
    xattr_magic,
)

from daxfs.ondisk import layout
from daxfs.ondisk.mapentry import UNWRITTEN, block_of, entry


@pytest.mark.parametrize("case", [*CASES, *FIELDS], ids=lambda case: case.name)
def test_damage_is_found_repaired_and_gone(damaged: Damaged, case: Case) -> None:
    pristine = damaged.listing()
    case.damage(damaged)
    before = damaged.path.read_bytes()
    found, text = damaged.fsck("-n")
    assert found == 4, text
    assert re.search(case.told, text), text
    assert damaged.path.read_bytes() == before, "-n must not write"

    repaired, text_of_repair = damaged.fsck("-y")
    assert repaired == 1, text_of_repair
    assert [line.removesuffix("yes") for line in text_of_repair.splitlines()[:-1]] == [
        line.removesuffix("no") for line in text.splitlines()[:-1]
    ], "-n must tell of exactly what -y repairs"

    clean, text = damaged.fsck("-n")
    assert clean == 0, text
    check_unchanged(pristine, damaged.listing(), case.changed)
    damaged.use()
    clean, text = damaged.fsck("-n")
    assert clean == 0, f"after use: {text}"


def check_unchanged(before: dict[str, Found], after: dict[str, Found], changed: str) -> None:
    """What is not below the paths in *changed* must be as it was; each of these must be another."""
    if changed == "*":
        return
    different = {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
    allowed = set(changed.split())
    if "LOST" in allowed:
        assert "lost+found" in different
        different = {p for p in different if p and p.split("/")[0] != "lost+found"}
        allowed.remove("LOST")
    outside = {p for p in different if not any(f"{p}/".startswith(f"{a}/") for a in allowed)}
    assert not outside, f"{sorted(outside)} changed as well"
    for path in allowed:
        assert any(f"{p}/".startswith(f"{path}/") for p in different), f"{path} did not change"


def test_an_untouched_image_is_clean(damaged: Damaged) -> None:
    before = damaged.path.read_bytes()
    assert damaged.fsck("-n")[0] == 0
    assert damaged.fsck("-y")[0] == 0
    assert damaged.path.read_bytes() == before


def test_what_was_not_damaged_survives_a_repair(damaged: Damaged) -> None:
    before = damaged.tree()
    entry_outside(damaged)
    assert damaged.fsck("-y")[0] == 1
    assert damaged.tree() == before, "only page 1 of the file was lost"


def test_the_journal_gives_the_old_state_back(damaged: Damaged) -> None:
    before = damaged.tree()
    journal(damaged)
    assert damaged.fsck("-y")[0] == 1
    assert damaged.tree() == before


def test_lost_files_are_found_by_their_number(damaged: Damaged) -> None:
    before = damaged.tree()
    folder_lost(damaged)
    file_lost(damaged)
    assert damaged.fsck("-y")[0] == 1
    after = damaged.tree()
    sub, one = damaged.numbers["folder/sub"], damaged.numbers["one"]
    assert after[f"lost+found/#{sub}/deep"] == before["folder/sub/deep"]
    assert after[f"lost+found/#{one}"] == before["one"]
    assert stat.S_IMODE(after["lost+found"][0]) == 0o700


def test_lost_and_found_belongs_to_who_owns_the_root(damaged: Damaged) -> None:
    damaged.change("", uid=1000, gid=1001)
    file_lost(damaged)
    assert damaged.fsck("-y")[0] == 1
    home = damaged.listing()["lost+found"]
    assert (home.uid, home.gid) == (1000, 1001)


def test_a_new_root_belongs_to_who_makes_it(
    damaged: Damaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("os.getegid", lambda: 1001)
    root_missing(damaged)
    assert damaged.fsck("-y")[0] == 1
    after = damaged.listing()
    assert {(after[path].uid, after[path].gid) for path in ("", "lost+found")} == {(1000, 1001)}


def test_a_whole_directory_full_of_files_fits_into_lost_and_found(damaged: Damaged) -> None:
    before = damaged.tree()
    damaged.poke(damaged.sb.inode_offset(damaged.numbers["many"]), bytes(layout.INODE_SIZE))
    assert damaged.fsck("-y")[0] == 1
    assert damaged.fsck("-n")[0] == 0
    after = damaged.tree()
    lost = [path for path in after if path.startswith("lost+found/")]
    assert len(lost) == len([path for path in before if path.startswith("many/")])


def test_lost_and_found_grows_over_several_runs(damaged: Damaged) -> None:
    file_lost(damaged)
    assert damaged.fsck("-y")[0] == 1
    folder_lost(damaged)
    assert damaged.fsck("-y")[0] == 1
    lost = [path for path in damaged.tree() if re.fullmatch(r"lost\+found/#\d+", path)]
    assert len(lost) == 2


def test_a_file_called_lost_and_found_is_left_alone(damaged: Damaged) -> None:
    image, persist, fs = mounted(damaged.path)
    fs.create(fs.root, b"lost+found", 0o644, CRED)
    fs.unmount()
    persist.close()
    image.close()
    file_lost(damaged)
    assert damaged.fsck("-y")[0] == 1
    after = damaged.tree()
    assert stat.S_ISREG(after["lost+found"][0])
    assert f"lost+found_/#{damaged.numbers['one']}" in after


def test_a_name_that_lost_and_found_has_already_is_left_alone(damaged: Damaged) -> None:
    before = damaged.tree()
    name = b"#%d" % damaged.numbers["one"]
    image, persist, fs = mounted(damaged.path)
    home = fs.mkdir(fs.root, b"lost+found", 0o755, CRED)
    fs.symlink(home, name, b"elsewhere", CRED)
    fs.unmount()
    persist.close()
    image.close()
    file_lost(damaged)
    assert damaged.fsck("-y")[0] == 1
    assert damaged.fsck("-n")[0] == 0
    after = damaged.tree()
    assert stat.S_ISLNK(after[f"lost+found/{name.decode()}"][0])
    assert after[f"lost+found/{name.decode()}_"] == before["one"]


def test_a_lost_file_whose_link_count_is_damaged_is_not_freed(damaged: Damaged) -> None:
    before = damaged.tree()
    links_flipped_and_folder_lost(damaged)
    assert damaged.fsck("-y")[0] == 1
    assert damaged.tree()[f"lost+found/#{damaged.numbers['one']}"] == before["one"]


def test_two_owners_of_one_block_get_one_each(damaged: Damaged) -> None:
    """Whichever of them is the right one, it loses nothing."""
    before = damaged.tree()
    shared = damaged.first_block("file")
    damaged.change("one", map_root=entry(shared, 0))
    assert damaged.fsck("-y")[0] == 1
    assert damaged.fsck("-n")[0] == 0
    after = damaged.tree()
    assert after["file"] == before["file"]
    assert after["one"][1] == before["file"][1]


def test_unwritten_blocks_are_legal(damaged: Damaged) -> None:
    damaged.change("one", map_root=damaged.row("one")["map_root"] | UNWRITTEN)
    assert damaged.fsck("-n")[0] == 0
    assert damaged.listing()["one"].contents == b"", "it reads as zeroes"


def test_many_damages_at_once_are_repaired_in_one_run(damaged: Damaged) -> None:
    for damage in (super_magic, journal, entry_flags, xattr_magic, name_twice, folder_lost, parent):
        damage(damaged)
    assert damaged.fsck("-y")[0] == 1
    assert damaged.fsck("-n")[0] == 0


@pytest.mark.parametrize("owner", ["big", "file", "one", "many", "labelled"])
def test_what_another_file_claims_is_not_lost(damaged: Damaged, owner: str) -> None:
    """The one that is damaged has the lower number, and so takes the blocks first."""
    first, *_ = sorted(damaged.numbers, key=lambda path: damaged.numbers[path])[1:]
    assert damaged.numbers[first] < damaged.numbers[owner] or first == owner
    before = damaged.listing()
    root = damaged.row(owner)["map_root"] or damaged.row(owner)["xattr_root"]
    node = damaged.root_node(first)
    damaged.poke_word(node + 8 * 400, entry(root >> 12, 0))
    damaged.poke_word(node + 8 * 401, entry(damaged.first_block("folder"), 0))
    assert damaged.fsck("-n")[0] == 4
    assert damaged.fsck("-y")[0] == 1
    assert damaged.fsck("-n")[0] == 0
    after = damaged.listing()
    different = {path for path in before if before[path] != after.get(path)}
    assert different <= {"file", "hard"}, "the damaged one"


def test_a_tree_that_two_share_is_copied_as_a_whole(damaged: Damaged) -> None:
    before = damaged.listing()
    shared = damaged.row("big")["map_root"]
    damaged.change("file", map_root=shared, size=1 << 22)
    code, text = damaged.fsck("-y")
    assert code == 1
    assert "in use already" in text
    assert damaged.fsck("-n")[0] == 0
    after = damaged.listing()
    assert after["big"] == before["big"]
    assert after["file"].contents[:4096] == before["big"].contents[:4096]


def leave_free(image: Damaged, blocks: int) -> None:
    """Have a file take all that is free, but for so many blocks."""
    opened, persist, fs = mounted(image.path)
    rest = fs.create(fs.root, b"rest", 0o644, CRED)
    fs.fallocate(rest, 0, 0, (fs.statfs().bavail - blocks) << 12)
    fs.unmount()
    persist.close()
    opened.close()


def test_no_copy_is_stored_below_a_node_that_another_has(damaged: Damaged) -> None:
    leave_free(damaged, 490)
    chunk = block_of(damaged.word(damaged.root_node("big")))
    assert min(damaged.free_blocks()) > chunk, "it comes first"
    before = damaged.listing()
    node_as_only_page(damaged)
    assert damaged.fsck("-y")[0] == 1
    assert damaged.fsck("-n")[0] == 0
    check_unchanged(before, damaged.listing(), "one")


def test_of_a_chunk_for_which_there_is_no_room_only_the_page_in_dispute_is_copied(
    damaged: Damaged,
) -> None:
    """And data of the pages behind it are found."""
    before = damaged.listing()
    leave_free(damaged, 490)
    page_of_chunk(damaged)
    damaged.change("big", size=5)
    assert damaged.fsck("-y")[0] == 1
    assert damaged.fsck("-n")[0] == 0
    after = damaged.listing()
    assert after.pop("rest")
    check_unchanged(before, after | {"": before[""]}, "sparse")


def test_a_chunk_that_stands_twice_is_copied_as_far_as_there_is_room(damaged: Damaged) -> None:
    before = damaged.listing()
    leave_free(damaged, 490)
    node = damaged.root_node("big")
    chunk = damaged.word(node)
    damaged.poke_word(node + 8 * 5, chunk | UNWRITTEN)
    damaged.poke_word(node + 8 * 6, chunk)
    assert damaged.fsck("-y")[0] == 1
    assert len(damaged.free_blocks()) <= 1, "the last one was to be a leaf"
    assert damaged.fsck("-n")[0] == 0
    after = damaged.listing()
    assert {path for path in before if before[path] != after[path]} == {""}, "pages in advance"


def test_without_room_for_copies_the_second_owner_gets_holes(damaged: Damaged) -> None:
    leave_free(damaged, 600)
    before = damaged.listing()
    damaged.change("file", map_root=damaged.row("big")["map_root"], size=1 << 22)
    assert damaged.fsck("-y")[0] == 1
    assert damaged.fsck("-n")[0] == 0
    after = damaged.listing()
    assert after["file"].contents == before["big"].contents, "the first takes them"
    assert len(after["big"].contents) < len(before["big"].contents)


def test_a_damaged_row_gets_nothing_that_others_have(damaged: Damaged) -> None:
    """One bit of a block number is wrong, and with it the checksum."""
    before = damaged.listing()
    root = entry(damaged.first_block("folder"), 0)
    offset = damaged.sb.inode_offset(damaged.numbers["one"])
    assert damaged.numbers["one"] < damaged.numbers["folder"]
    damaged.poke_word(offset + 48, root)
    assert damaged.fsck("-y")[0] == 1
    after = damaged.listing()
    assert {p for p in before if before[p] != after.get(p)} == {"one"}
    assert (after["one"].contents, after["one"].size) == (b"", before["one"].size)


def test_a_directory_keeps_the_name_that_its_parent_agrees_with(damaged: Damaged) -> None:
    """A record of the root, which is looked at first, names a directory that lies elsewhere."""
    before = damaged.listing()
    at = damaged.record("", b"one")
    damaged.poke(at, struct.pack("<I", damaged.numbers["folder/sub"]))
    damaged.poke(at + 7, b"\x04")
    code, text = damaged.fsck("-y")
    assert code == 1
    assert "names directory" in text
    assert damaged.fsck("-n")[0] == 0
    after = damaged.listing()
    assert after["folder/sub/deep"] == before["folder/sub/deep"]
    assert "one" not in after


def test_names_behind_a_bad_record_are_kept(damaged: Damaged) -> None:
    before = damaged.listing()
    at = damaged.record("", b"one")
    damaged.poke(at + 4, struct.pack("<HB", 13, 0))
    assert damaged.fsck("-y")[0] == 1
    after = damaged.listing()
    gone = {path for path in before if path and before[path] != after.get(path)}
    assert gone == {"one"}, "it is in lost+found"


def test_lost_folders_find_a_place_below_a_root_whose_link_count_is_full(damaged: Damaged) -> None:
    damaged.change("", nlink=0xFFFFFFFF)
    damaged.poke(damaged.record("", b"folder"), bytes(4))
    code, text = damaged.fsck("-y")
    assert code == 1, text
    assert "lost+found" in text
    assert damaged.fsck("-n")[0] == 0
    assert f"lost+found/#{damaged.numbers['folder']}/sub/deep" in damaged.tree()


def test_lost_folders_find_a_place_in_a_lost_found_whose_link_count_is_full(
    damaged: Damaged,
) -> None:
    damaged.poke(damaged.record("", b"folder"), bytes(4))
    assert damaged.fsck("-y")[0] == 1
    assert "lost+found" in damaged.tree()
    home = next(
        ino
        for ino in range(2, 1024)
        if damaged.peek(damaged.sb.inode_offset(ino), 4) == (0o40700).to_bytes(4, "little")
    )
    damaged.numbers["lost+found"] = home
    damaged.change("lost+found", nlink=0xFFFFFFFF)
    damaged.poke(damaged.record("", b"many"), bytes(4))
    code, text = damaged.fsck("-y")
    assert code == 1, text
    assert damaged.fsck("-n")[0] == 0
