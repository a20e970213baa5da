"""The lines that `hpdm prep` ends with."""

from pathlib import Path

from hpdm_cli.tables import Shown, command_line
from hpdm_cli.units import number_of, size

# Recipe to train on a data set and the name of its data, by the command that prepared it.
_RECIPES = {
    "shapes": ("quickstart", "shapes"),
    "vizdoom": ("walks", "vizdoom"),
    "ucf101": ("hpdm_s", "ucf101"),
    "text": ("t2v_base_tiny", "captions"),
}
_OWN_VIDEOS = ("small", "clips")
# Walks at another size than that of the recipe above, by their height.
_LARGER_WALKS = {128: ("walks128", "walks128"), 256: ("hpdm_s_walks", "walks256")}


def prepared(result: dict, *, root: Path | str, kind: str, command: str) -> Shown:
    """Return the ending of `hpdm prep`, also of its dry run: then `command` is what follows."""
    if "dry_run" in result:
        return Shown(lines=[*_to_prepare(result), ("to", result["folder"]), ("next", command)])
    lines = [("data", result["usable"])]
    if "shard" in result:
        command = command_line("hpdm", "prep", "commit", result["folder"])
        return Shown(lines=[*lines, ("part", result["shard"]), ("next", f"the others, {command}")])
    frames, sizes = result["frames"], list(result["sizes"])
    splits = ", ".join(f"{name} {number:,}" for name, number in result["splits"].items())
    lines.append(("in", f"{result['folder']} ({size(result['bytes'])})"))
    lengths = sorted({frames["min"], frames["max"]})
    described = [number_of(result["classes"], "class"), f"{' to '.join(map(str, lengths))} frames"]
    described.append(sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes, most {sizes[0]}")
    lines.append(("figures", f"{', '.join(described)}; {splits}"))
    lines += [("note", note) for note in result["notes"]]
    name, text = result["name"], result.get("text")
    recipe, usual = _RECIPES.get("text" if text else kind, _OWN_VIDEOS)
    if kind == "vizdoom":
        height = int(sizes[0].split("x")[0])
        recipe, usual = _LARGER_WALKS.get(height, (recipe, usual))
    own = [] if name == usual else [f"data.name={name}"]
    own += [] if Path(root) == Path("data") else [f"data.root={root}"]
    own += [f"model.condition_width={text['width']}"] if text else []
    return Shown(lines=[*lines, ("next", command_line("hpdm", "train", recipe, *own))])


def _to_prepare(result: dict) -> list[tuple[str, str]]:
    """Return the lines of what a dry run of `hpdm prep` found, or has to download first."""
    if "files" not in result:
        facts = {k: v for k, v in result.items() if k not in ("dry_run", "name", "folder")}
        facts |= {"bytes": size(facts["bytes"])} if "bytes" in facts else {}
        return [("plan", f"{name.replace('_', ' ')}: {value}") for name, value in facts.items()]
    splits = ", ".join(f"{name} {number:,}" for name, number in result["splits"].items())
    found = [number_of(result["files"], "video"), number_of(result["classes"], "class")]
    found += [size(result["bytes"])] if result["bytes"] else []
    notes = [("note", note) for note in result["notes"]]
    return [("plan", f"{', '.join(found)}; {splits}"), *notes]


def committed(result: dict) -> Shown:
    """Return the ending of `hpdm prep commit`."""
    splits = ", ".join(f"{name} {number:,}" for name, number in result["splits"].items())
    lines = [
        ("data", result["usable"]),
        ("in", result["folder"]),
        ("figures", f"{number_of(result['shards'], 'shard')}, "
                    f"{number_of(result['classes'], 'class')}; {splits}"),
    ]  # fmt: skip
    if "://" in result["folder"]:
        copied = "copy it to a disk, or mount it, to train on it (docs/cluster.md)"
        return Shown(lines=[*lines, ("next", copied)])
    folder = Path(result["folder"])
    own = (f"data.root={folder.parent}", f"data.name={folder.name}")
    return Shown(lines=[*lines, ("next", command_line("hpdm", "train", "small", *own))])
