"""The lines that commands end with: what was made, where, its figures, and the next command."""

from pathlib import Path

from hpdm_cli.tables import Shown, command_line
from hpdm_cli.units import count, duration, flop, gpu_hours, number_of, resolution, size
from hpdm_core.metrics.protocols import MIN_VIDEOS

_MOST_COLUMNS = 4  # of a table in the terminal


def trained(result: dict, *, name: str) -> Shown:
    """Return the ending of `hpdm train` and `hpdm finetune`."""
    last = result["last"]
    levels = " ".join(f"{v:.3f}" for key, v in last.items() if key.startswith("loss_"))
    loss = f"; loss {last['loss']:.4f} (levels {levels})" if "loss" in last else ""
    weights = count(result["parameters"])
    made = f"{name}, {result['steps']:,} steps, {weights} weights{loss}"
    lines = [("trained", made), ("in", result["checkpoint"])]
    if "initialised" in result:
        lines.append(("from", _initialised(result["initialised"])))
    pictures = [result[name] for name in ("preview", "loss_plot") if result[name]]
    if pictures:
        lines.append(("see", ", ".join(pictures)))
    figures = [f"{duration(result['seconds_training'])} of training"]
    if "videos_per_second" in last:
        figures.append(f"{count(last['videos_per_second'])} videos/s at the end")
    for key, what in (("skipped_steps", "steps skipped"), ("replaced_videos", "videos replaced")):
        figures += [f"{result[key]:,} {what}"] if result[key] else []
    lines.append(("figures", ", ".join(figures)))
    command = command_line("hpdm", "sample", "--checkpoint", result["run"], "--overlap", "fhw")
    return Shown(lines=[*lines, ("next", command)])


def training_plan(result: dict, *, name: str, command: str) -> Shown:
    """Return tables and lines of a dry run of `hpdm train` or `hpdm finetune`."""
    levels = [
        {
            "level": number,
            "resolution": resolution(level["resolution"]),
            "patch": resolution(level["patch"]),
            "tokens": level["tokens"],
            "blocks": level["blocks"],
            "a video, trained": flop(level["flops_training"]),
        }
        for number, level in enumerate(result["levels"])
    ]
    cards = [
        {"GPU": row["card"], "micro-batch": row["micro_batch"], "verdict": row["verdict"]}
        for row in result["memory_on_cards"]
    ]
    videos = result["steps"] * result["batch_size"]
    cost = result["flops_per_video_training"]
    place = "on each" if "scaling" in result else "here"
    lines = [
        ("plan", f"{name}: {result['steps']:,} steps of {result['batch_size']:,} videos on "
                 f"{number_of(result['devices'], 'device')}; "
                 f"{count(result['parameters']['total'])} weights"),
        ("cost", f"{flop(cost)} a video, {flop(cost * videos)} in all"),
        ("memory", f"micro-batch {result['micro_batch']} {place} {result['memory_verdict']}"),
        *_scaling(result),
        ("disk", f"{size(result['checkpoint_bytes'])} a checkpoint, to {result['out']}"),
    ]  # fmt: skip
    if "initialised" in result:
        lines.append(("from", _initialised(result["initialised"])))
    if "distillation" in result:
        teacher, student = (result["distillation"][name] for name in ("teacher", "student"))
        lines.append(("student", f"{count(student)} block passes a video, {teacher / student:.1f} "
                                 f"times fewer than its teacher's {count(teacher)}"))  # fmt: skip
    lines += [("note", note) for note in result["notes"]]
    return Shown(
        tables={"Levels": levels, "Memory by GPU": cards}, lines=[*lines, ("next", command)]
    )


def models(result: dict) -> Shown:
    """Return the table of `hpdm sample --list`."""
    rows = [
        {
            "--checkpoint": model["checkpoint"],
            "step": model.get("step"),
            "data": model.get("data") or model["unusable"],
            "videos": resolution(model.get("resolution", [])),
            "conditioned on": _conditions(model),
        }
        for model in result["models"]
    ]
    lines = [("shipped", f"stands for {result['shipped']}")]
    usable = [m["checkpoint"] for m in result["models"] if "unusable" not in m]
    newest = usable[-1] if usable else result["shipped"]
    lines.append(("next", command_line("hpdm", "sample", "--checkpoint", newest)))
    return Shown(tables={"Checkpoints": rows}, lines=lines)


def recipes(rows: list[dict]) -> Shown:
    """Return the table of `hpdm train --list`."""
    shown = [
        {
            "recipe": row["recipe"],
            "data": row["data"],
            "videos": resolution(row["resolution"]),
            "description": row["description"],
        }
        for row in rows
    ]
    lines = [("train", "hpdm train RECIPE"), ("edit", "hpdm train --copy RECIPE")]
    return Shown(tables={"Recipes": shown}, lines=lines)


def copied(path: Path) -> Shown:
    """Return the ending of `hpdm train --copy`."""
    return Shown(lines=[("made", str(path)), ("next", command_line("hpdm", "train", str(path)))])


def _conditions(model: dict) -> str:
    classes = model.get("classes", [])
    if not classes:
        return str(model.get("conditioning", "-"))
    more = ", ..." if len(classes) > 2 else ""
    return f"{len(classes)} classes: {', '.join(classes[:2])}{more}"


def sampled(result: dict) -> Shown:
    """Return the ending of `hpdm sample`."""
    there = result["videos"] - result["made"]
    settings = result["settings"]
    made = f"{number_of(result['made'], 'video')} of {resolution(settings['resolution'])}"
    made += f", overlap {settings['overlap']}, steps {', '.join(map(str, settings['steps']))}"
    pictures = [result["contact_sheet"], result["preview"], *result["comparisons"][:2]]
    took = f"{duration(result['seconds'])}"
    if result["made"]:
        took += f", {duration(result['seconds'] / result['made'])} a video"
    lines = [
        ("made", f"{made}; {there:,} already there" if there else made),
        ("in", result["out"]),
        ("see", ", ".join(pictures)),
        ("figures", took),
        ("next", _after_sampling(result)),
    ]
    return Shown(lines=lines)


def _after_sampling(result: dict) -> str:
    """Return the command that scores the videos, or one that needs no data where there are none."""
    if result["data"] is None:
        return "hpdm train --list"
    few = ["--force"] if result["videos"] < MIN_VIDEOS else []
    return command_line(
        "hpdm", "eval-fvd", "--samples", result["out"], "--real", result["data"],
        "--protocol", "fvdfull_16f", "--detector", "bundled", *few,
    )  # fmt: skip


def sampling_plan(result: dict, *, command: str) -> Shown:
    """Return the table and lines of a dry run of `hpdm sample`."""
    levels = [
        {
            "level": number,
            "resolution": resolution(level["resolution"]),
            "tiles": level["tiles"],
            "solver": level["solver"],
            "steps": level["steps"],
            "NFE": level["evaluations"],
            "cached": count(level["block_passes_cached"]),
            "uncached": count(level["block_passes_uncached"]),
        }
        for number, level in enumerate(result["levels"])
    ]
    cached, uncached = result["block_passes_cached"], result["block_passes_uncached"]
    paper, fast = (result["presets"][name] for name in ("paper", "fast"))
    fewer = f": {paper / fast:.1f} times fewer" if fast < paper else ""
    memory = f"{size(result['memory_bytes']['total'])} on a GPU with "
    memory += f"{number_of(result['videos_at_a_time'], 'video')} and "
    memory += f"{number_of(result['tiles_at_a_time'], 'tile')} at a time"
    lines = [
        ("plan", f"{number_of(result.get('videos', 1), 'video')} with {result['model']}"),
        ("cost", f"{count(cached)} block passes a video; {uncached / cached:.1f} times as many "
                 f"without the cache; overlap {result['overlap']}"),
        ("presets", f"paper {count(paper)} block passes a video, fast {count(fast)}{fewer}"),
        ("memory", memory),
    ]  # fmt: skip
    guided = sum(level["block_passes_guided"] for level in result["levels"])
    if guided:
        lines.insert(2, ("guided", f"{count(guided)} of them, as known pixels guide level 0"))
    if result.get("windows", 1) > 1:
        lines.append(("windows", f"{result['windows']} in time, each at this cost"))
    if "memory_verdict" in result:
        lines.append(("here", result["memory_verdict"]))
    return Shown(tables={"Block passes": levels}, lines=[*lines, ("next", command)])


def ablation_plan(result: dict, *, command: str) -> Shown:
    """Return the table and lines of a dry run of `hpdm ablate`."""
    plan = result["plan"]
    rows = [{key: row[key] for key in ("row", "setup", "seed", "done")} for row in result["rows"]]
    lines = [
        ("plan", f"{result['title']}, scale {result['scale']}: {result['about']}"),
        ("to do", f"{plan['trials'] - plan['trials_done']} of {plan['trials']} rows and seeds"),
    ]
    if "hours" in plan:
        lines += [
            ("work", f"{number_of(plan['trainings'], 'training')}, "
                     f"{count(plan['training_steps'])} steps; "
                     f"{count(plan['fakes'])} generated videos"),
            ("cost", f"{_hours_here(plan)}, {size(plan['disk_gb'] * 1e9)} of disk"),
        ]  # fmt: skip
        if plan["gpu_hours"]:  # 0 where it is less than the rounding
            lines.append(
                ("on GPUs", f"about {gpu_hours(plan['gpu_hours'])} ({plan['gpu_hours_by']})")
            )
    lines += [("first", needed) for needed in result["needs"]]
    return Shown(tables={"Rows": rows}, lines=[*lines, ("next", command)])


def _hours_here(plan: dict) -> str:
    if plan["too_long_here"]:
        return "more than a year of this device"
    return f"about {duration(3600 * plan['hours'])} of this device (by {plan['hours_by']})"


def _scaling(result: dict) -> list[tuple[str, str]]:
    """Return the lines of a simulated cluster."""
    if (found := result.get("scaling")) is None:
        return []
    return [
        ("cluster", f"{found['devices']:,} x {found['cluster']} (assumed)"),
        ("step", f"{duration(found['step_seconds'])} without overlap: "
                 f"{duration(found['compute_seconds'])} of computing, "
                 f"{duration(found['communication_seconds'])} of sending "
                 f"{size(found['sent_bytes'])} from each; "
                 f"{duration(86400 * found['days'])} in all"),
    ]  # fmt: skip


def _initialised(table: dict) -> str:
    rows = table["weights"]
    loaded = sum(row["loaded"] + row["interpolated"] for row in rows)
    total = loaded + sum(row["missing"] for row in rows)
    start = "starts as the base" if table["level_0_as_base"] else "does not start as the base"
    return f"{table['from']}: {count(loaded)} of {count(total)} weights; level 0 {start}"


def tables(rows: list[dict]) -> Shown:
    """Return the table of `hpdm ablate --list`."""
    shown = [
        {"table": row["table"], "title": row["title"], "rows": ", ".join(row["rows"])}
        for row in rows
    ]
    lines = [("scales", ", ".join(rows[0]["scales"])), ("next", "hpdm ablate TABLE --dry-run")]
    return Shown(tables={"Tables": shown}, lines=lines)


def ablated(result: dict) -> Shown:
    """Return tables and lines of `hpdm ablate`: the paper's figure, ours and the difference."""
    across, down = ("row", "column") if result["turned"] else ("column", "row")
    columns = [(_title(cells[0], across), cells) for cells in _by(result["cells"], across)]
    setups = [_title(cells[0], down) for cells in _by(result["cells"], down)]
    parts = [columns[k : k + _MOST_COLUMNS] for k in range(0, len(columns), _MOST_COLUMNS)]
    title = f"{result['title']} ({result['scale']})"
    shown = {
        title if number == 1 else f"{title}, more columns": [
            {"setup": setup} | {title: _in_lines(cells[place]) for title, cells in part}
            for place, setup in enumerate(setups)
        ]
        for number, part in enumerate(parts, 1)
    }
    lines = [("notice", notice) for notice in result["notices"]]
    lines += [
        (finding["verdict"], f"{finding['finding']} (here: {finding['ours']})")
        for finding in result["findings"]
    ]
    done = f"{number_of(result['trials_done'], 'trial')}, {duration(result['seconds'])}"
    lines += [("figures", done), ("report", result["files"]["report"])]
    return Shown(tables=shown, lines=[*lines, ("next", _larger(result))])


def _larger(result: dict) -> str:
    """Return the command that runs a table at the next larger scale, or plans it."""
    again = ["hpdm", "ablate", result["table"], "--scale"]
    return command_line(
        *again, *(["tiny"] if result["scale"] == "smoke" else ["paper", "--dry-run"])
    )


def _by(cells: list[dict], place: str) -> list[list[dict]]:
    """Return the cells of each row or of each column, in order."""
    keys = dict.fromkeys(cell[place] for cell in cells)
    return [[cell for cell in cells if cell[place] == key] for key in keys]


def _title(cell: dict, place: str) -> str:
    """Return the name of the cell's row or column."""
    if place == "row":
        return cell["setup"]
    if cell["ours_heading"] == cell["heading"]:
        return cell["heading"]
    return f"{cell['heading']}\nours: {cell['ours_heading']}"


def _in_lines(cell: dict) -> str:
    shown = cell["shown"]
    if cell["paper"] is not None and shown["ours"] == shown["paper"]:
        return f"both {shown['ours']}"
    if cell["paper"] is None:
        return "\n".join(line for line in (shown["ours"], shown["diff"]) if line)
    lines = [f"paper {shown['paper']}", f"ours {shown['ours']}", shown["diff"]]
    return "\n".join(line for line in lines if line)
