"""UCF-101 from its videos and official split lists, wherever they are (Soomro et al. 2012)."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hpdm_core.data.folders import find_videos, name_problem
from hpdm_core.data.metadata import read_lines
from hpdm_core.data.plan import DecodingOptions, Plan, SourceVideo
from hpdm_core.data.ucf101_source import Ucf101Files
from hpdm_core.errors import DataError
from hpdm_core.names import as_unicode

NUM_CLASSES = 101
# v_<class>_g<group>_c<clip>: clips of one group were cut from one film, so groups never straddle
# the splits; official list 1 tests on groups 1 to 7, list 2 on 8 to 14, list 3 on 15 to 21.
FILE_NAME = re.compile(r"v_(?P<label>[A-Za-z0-9]+)_g(?P<group>\d+)_c(?P<clip>\d+)$")
GROUPS_PER_LIST = 7


@dataclass(frozen=True, kw_only=True)
class SplitLists:
    """The official lists, all names in lower case.

    Args:
        classes: official spelling by lower-case name, in the official order; empty if not found.
        splits: 'train' or 'test' by lower-case file stem; empty if not found.
    """

    classes: dict[str, str]
    splits: dict[str, str]


def plan_ucf101(
    folder: Path,
    *,
    name: str,
    files: Ucf101Files,
    fold: int,
    options: DecodingOptions,
    workers: int | None,
) -> Plan:
    """Plan UCF-101 from videos nested by class or flat: the class is in the file's name.

    Args:
        files: where videos and lists lie.
        fold: official list, 1 to 3.

    Raises:
        DataError: no file is named as UCF-101 names them, or there is no such list.
    """
    if fold not in (1, 2, 3):
        raise DataError(
            "UCF-101 has three official splits", got=f"--fold {fold}", expected="1 to 3"
        )
    source = files.videos
    official = read_split_lists(files.lists or source, fold)
    named = [(n, f, FILE_NAME.match(f.stem)) for n, f in find_videos(source)]
    if not any(match for _, _, match in named):
        raise DataError(
            f"no UCF-101 video in {source}",
            expected="files named v_<Class>_g<NN>_c<NN>.avi",
            remedy="use `hpdm prep folder` for other collections",
        )
    spelling = dict(official.classes)
    for _, _, match in named:
        if match and not official.classes:  # with a list, files not in it are mislabelled
            spelling.setdefault(match["label"].lower(), match["label"])
    complete = len(spelling) == NUM_CLASSES
    videos = [
        _video(n, f, match, spelling, official.splits, fold=fold, complete=complete)
        for n, f, match in named
    ]
    return Plan(
        folder=folder,
        name=name,
        kind="ucf101",
        classes=tuple(official.classes.values()) or tuple(sorted(spelling.values())),
        source=as_unicode(files.words),
        videos=videos,
        make=options,
        settings=options.settings,
        workers=workers,
        notes=files.notes + _notes(official, videos, fold=fold, complete=complete),
    )


def read_split_lists(folder: Path, fold: int) -> SplitLists:
    """Read classInd.txt, trainlist0N.txt and testlist0N.txt anywhere below `folder`."""
    files = {file.name.lower(): file for file in sorted(folder.rglob("*.txt")) if file.is_file()}
    classes = {}
    if index := files.get("classind.txt"):
        for _, line in read_lines(index):
            if len(words := line.split()) == 2:
                classes[words[1].lower()] = words[1]
    splits = {}
    for split in ("train", "test"):
        if listed := files.get(f"{split}list{fold:02d}.txt"):
            for _, line in read_lines(listed):
                stem = line.split()[0].rpartition("/")[2].rpartition(".")[0]
                splits[stem.lower()] = split
    return SplitLists(classes=classes, splits=splits)


def _video(
    name: str,
    file: Path,
    match: re.Match | None,
    spelling: dict[str, str],
    splits: dict[str, str],
    *,
    fold: int,
    complete: bool,
) -> SourceVideo:
    if problem := name_problem(name):
        return SourceVideo(file=file, name=name, problem=problem)
    if match is None:
        detail = "its name is not of the form v_<Class>_g<NN>_c<NN>, so its class is not known"
        return SourceVideo(file=file, name=name, problem=("mislabelled", detail))
    label = match["label"].lower()
    if label not in spelling:
        detail = f"its class {match['label']} is not in classInd.txt"
        return SourceVideo(file=file, name=name, problem=("mislabelled", detail))
    parent = file.parent.name.lower()
    if parent in spelling and parent != label:
        detail = f"named {match['label']}, but in the folder of {file.parent.name}"
        return SourceVideo(file=file, name=name, problem=("mislabelled", detail))
    if splits:
        split = splits.get(file.stem.lower(), "unlisted")
    elif complete:
        first = GROUPS_PER_LIST * (fold - 1) + 1
        split = "test" if first <= int(match["group"]) < first + GROUPS_PER_LIST else "train"
    else:
        split = "train"
    return SourceVideo(file=file, name=name, class_name=spelling[label], split=split)


def _notes(
    official: SplitLists, videos: list[SourceVideo], *, fold: int, complete: bool
) -> tuple[str, ...]:
    if official.splits:
        counts = Counter(video.split for video in videos if video.problem is None)
        notes = [f"splits from the official list {fold}"]
        if counts["unlisted"]:
            notes.append(f"{counts['unlisted']} videos stand in neither list: split 'unlisted'")
        return tuple(notes)
    if complete:
        first = GROUPS_PER_LIST * (fold - 1) + 1
        return (
            f"no split lists found: groups {first} to {first + GROUPS_PER_LIST - 1} are the test "
            f"split, as in the official list {fold}",
        )
    return ("no split lists found, and not all 101 classes: every video is in the train split",)
