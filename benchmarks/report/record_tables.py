"""Tables of records: FLOPs, memory, streaming and scaling."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.report.tables import Table, nbytes, quantity, tera, three
from benchmarks.rows import Record

OURS = "TRecViT-B"
FRAMES, IMAGE = 32, 224  # the paper's point of comparison
CATEGORIES = ("parameters", "gradients", "optimizer", "activations", "temporaries", "inputs", "buffers")


def flops(records: Sequence[Record]) -> list[Table]:
    """FLOPs and parameters: all models at the paper's point, then over frames."""
    found = [r for r in of_suite(records, "flops") if r.at.get("image", IMAGE) == IMAGE]
    if not found:
        return []
    over = [_over("flops", found, mode, "frames", "flop") for mode in ("forward", "training")]
    return [_flops_at(found), *(table for table in over if table.rows)]


def memory(records: Sequence[Record]) -> list[Table]:
    """Breakdown at the paper's point, what each layer keeps, then peaks over frames and over image size."""
    found = of_suite(records, "memory")
    tracked = [r for r in found if "total" in r.values]
    tables = [_memory_at(tracked)] if tracked else []
    tables.append(_by_layer([r for r in found if r.at.get("mode") == "saved by layer"]))
    for mode in ("training", "inference"):
        tables += [_over("memory", tracked, mode, axis, "total") for axis in ("frames", "image")]
    return [table for table in tables if table.rows]


def streaming(records: Sequence[Record]) -> list[Table]:
    """Latency and memory of a long stream."""
    rows, notes = [], []
    for r in of_suite(records, "streaming"):
        v = r.values
        row = [r.what, f"{r.at.get('frames', len(v.get('latencies', [])))}"]
        row += [
            three(v["frames_per_second"]),
            *(f"{three(1e3 * v[name])} ms" for name in ("p50", "p99", "mean")),
        ]
        rows.append((*row, nbytes(v["state_bytes"]), growth(v)))
        if r.note:
            notes.append(f"{r.what}: {r.note}")
    headings = ("model", "frames", "frames/s", "p50", "p99", "mean", "state", "memory, and its growth")
    return [Table("Streaming, one frame at a time", headings, rows, notes=notes)] if rows else []


def growth(values: dict[str, Any]) -> str:
    """Mean memory in the second quarter of the samples, and how much more it is in the last; "" without samples."""
    samples = values.get("resident") or []
    if len(samples) < 4:
        return ""
    quarter = len(samples) // 4
    before = statistics.fmean(samples[quarter : 2 * quarter])
    change = statistics.fmean(samples[-quarter:]) - before
    return f"{nbytes(before)}, {'+' if change >= 0 else '−'}{nbytes(abs(change))}"


def scaling(records: Sequence[Record]) -> list[Table]:
    """Fitted slopes, then the points they were fitted to."""
    found = of_suite(records, "scaling")
    points = [r for r in found if "size" in r.at]
    tables, rows, notes = [], [], []
    for r in found:
        if "size" in r.at:
            continue
        what, axis, dtype = r.what.removesuffix(" slope"), r.at.get("axis", ""), r.at.get("dtype", "")
        sizes = [
            int(p.at["size"])
            for p in points
            if (p.what, p.at.get("axis", "")) == (what, axis) and dtype in ("", p.at.get("dtype", ""))
        ]
        row = [what, str(dtype), str(axis), f"{min(sizes):,}–{max(sizes):,}" if sizes else ""]
        for name in ("slope_time", "slope_bytes"):
            value = r.values.get(name)
            row.append(f"{value:.2f}" if isinstance(value, int | float) else "–")
        rows.append(tuple(row))
        if r.note:
            notes.append(f"{what} over {axis}: {r.note}")
    if rows:
        headings = ("what", "dtype", "over", "measured", "slope of time", "slope of memory")
        title = "Scaling: slopes in log-log (1: linear, 0: constant)"
        tables.append(Table(title, headings, rows, text=(0, 1, 2), notes=notes))
    rows = []
    for p in points:
        held = p.values.get("bytes")
        row = [p.what, str(p.at.get("dtype", "")), str(p.at.get("axis", "")), f"{p.at['size']:,}"]
        rows.append((*row, quantity(p.values.get("seconds"), "s"), "–" if held is None else nbytes(held)))
    if rows:
        headings = ("what", "dtype", "over", "size", "time", "memory")
        tables.append(Table("Scaling: what was measured", headings, rows, text=(0, 1, 2)))
    return tables


def model(records: Sequence[Record]) -> list[Table]:
    """Frames per second of whole models, with energy where the GPU reports it."""
    found = of_suite(records, "model")
    energy = any("joules_per_frame" in r.values for r in found)
    rows = []
    for r in found:
        row = [r.what, *(str(r.at.get(name, "")) for name in ("mode", "dtype", "backend"))]
        row += [f"{r.at.get('batch', 1)} × {r.at.get('frames', '')}", quantity(r.values.get("seconds"), "s")]
        row.append(three(r.values["frames_per_second"]) if "frames_per_second" in r.values else "–")
        if energy:
            row += [
                three(r.values[name]) if name in r.values else "–" for name in ("watts", "joules_per_frame")
            ]
        rows.append(tuple(row))
    headings = ("model", "mode", "dtype", "by", "batch × frames", "time", "frames/s")
    return (
        [Table("Whole models", (*headings, *(("W", "J/frame") if energy else ())), rows, (0, 1, 2, 3))]
        if rows
        else []
    )


def others(records: Sequence[Record]) -> list[Table]:
    """Records of suites that have no table of their own."""
    known = ("flops", "memory", "model", "streaming", "scaling")
    tables = []
    for suite in dict.fromkeys(r.suite for r in records if r.suite not in known):
        rows = []
        for r in of_suite(records, suite):
            values = ", ".join(f"{k} {v:g}" for k, v in r.values.items() if isinstance(v, int | float))
            rows.append((r.what, ", ".join(f"{k} {v}" for k, v in r.at.items()), values, r.note))
        tables.append(
            Table(suite.capitalize(), ("what", "at", "values (SI units)", "note"), rows, (0, 1, 2, 3))
        )
    return tables


def versus_vivit(records: Sequence[Record]) -> Table | None:
    """The paper's comparison at a glance: TRecViT-B against ViViT-L with both of its patchings."""
    peers = ("ViViT-L 1x16x16", "ViViT-L 2x16x16")
    counted = {(r.what, r.at.get("mode")): r.values for r in _at_paper(of_suite(records, "flops"))}
    held_records = _at_paper(of_suite(records, "memory"))
    dtypes = list(dict.fromkeys(str(r.at.get("dtype", "")) for r in held_records))
    dtype = "float32" if "float32" in dtypes else next(iter(dtypes), "")
    held = {(r.what, r.at.get("mode")): r.values for r in held_records if str(r.at.get("dtype", "")) == dtype}
    lines = [
        ("parameters", counted, "", "forward", "parameters", lambda n: f"{n / 1e6:.1f} M"),
        ("forward", counted, "", "forward", "flop", lambda n: f"{tera(n)} TFLOP"),
        ("training step", counted, "", "training", "flop", lambda n: f"{tera(n)} TFLOP"),
        *(
            (
                f"peak memory of training, {dtype}, ViViT with {a} attention",
                held,
                f", {a} attention",
                "training",
            )
            + ("total", nbytes)
            for a in ("eager", "flash")
        ),
    ]
    rows = []
    for name, table, suffix, mode, value, shown in lines:
        mine = table.get((OURS, mode), {}).get(value)
        theirs = [table.get((peer + suffix, mode), {}).get(value) for peer in peers]
        if mine is None or not any(theirs):
            continue
        row = [name, shown(mine)]
        for their in theirs:
            row += [shown(their), f"{three(their / mine)}×"] if their else ["–", "–"]
        rows.append(tuple(row))
    if not rows:
        return None
    headings = ("", OURS, "ViViT-L 1×16×16, as in the paper", "ratio", "ViViT-L 2×16×16, as usual", "ratio")
    return Table(f"One video of {FRAMES} frames of {IMAGE}²", headings, rows)


def left_out(records: Sequence[Record]) -> list[str]:
    """A line for each record without values: what could not be measured, and why."""
    return [
        f"{r.suite}: {', '.join([r.what, *(f'{k} {v}' for k, v in r.at.items())])}: {r.note or 'no values'}"
        for r in records
        if not r.values
    ]


def of_suite(records: Iterable[Record], suite: str) -> list[Record]:
    """The suite's records that have values; of two of the same thing at the same point, the later."""
    found = {(r.what, tuple(sorted(r.at.items()))): r for r in records if r.suite == suite and r.values}
    return list(found.values())


def _flops_at(found: Sequence[Record]) -> Table:
    frames = _point(found, "frames", FRAMES)
    forward, training = (
        {r.what: r for r in found if r.at["frames"] == frames and r.at["mode"] == mode}
        for mode in ("forward", "training")
    )
    rows = []
    for what in dict.fromkeys([*forward, *training]):
        some = forward.get(what) or training[what]
        row = [what, f"{some.values['parameters'] / 1e6:.1f} M"]
        for table in (forward, training):
            row += [_value(table, what, "flop", tera), _times(table, what, OURS, "flop")]
        rows.append((*row, some.note or "counted"))
    headings = (
        "model",
        "parameters",
        "forward, TFLOP",
        f"× {OURS}",
        "training step, TFLOP",
        f"× {OURS}",
        "how",
    )
    return Table(f"FLOPs and parameters, {frames} frames of {IMAGE}²", headings, rows, text=(0, 6))


def _memory_at(found: Sequence[Record]) -> Table:
    frames, image = _point(found, "frames", FRAMES), _point(found, "image", IMAGE)
    here = [r for r in found if (r.at["frames"], r.at["image"]) == (frames, image)]
    used = [name for name in CATEGORIES if any(r.values.get(name) for r in here)]
    allocator = any("allocator" in r.values for r in here)
    rows = []
    for record in here:
        same = {r.what: r for r in here if _but(r.at, "") == _but(record.at, "")}
        row = [record.what, str(record.at["mode"]), str(record.at.get("dtype", ""))]
        row += [_value(same, record.what, "total", nbytes), _times(same, record.what, OURS, "total")]
        row += [_value(same, record.what, name, nbytes) for name in (*used, "saved")]
        if allocator:
            row.append(_value(same, record.what, "allocator", nbytes))
        rows.append(tuple(row))
    headings = ["model", "mode", "dtype", "peak", f"× {OURS}", *used, "kept for backward"]
    title = f"Peak memory and what holds it, {frames} frames of {image}², batch 1"
    return Table(title, [*headings, *(["allocator's peak"] if allocator else [])], rows, text=(0, 1, 2))


def _by_layer(found: Sequence[Record]) -> Table:
    rows = [
        (
            r.what,
            str(r.at.get("dtype", "")),
            layer,
            nbytes(held),
            f"{100 * held / sum(r.values.values()):.0f} %",
        )
        for r in found
        for layer, held in r.values.items()
    ]
    headings = ("model", "dtype", "layer", "keeps", "share")
    return Table(
        f"Kept for the backward pass, by layer, {FRAMES} frames of {IMAGE}²", headings, rows, text=(0, 1, 2)
    )


def _over(suite: str, found: Sequence[Record], mode: str, axis: str, name: str) -> Table:
    """One value of every model over ``axis``, the other point of measurement at the paper's."""
    chosen = [r for r in found if r.at.get("mode") == mode and name in r.values and axis in r.at]
    fixed = {"frames": "image", "image": "frames"}[axis]
    at_fixed = _point(chosen, fixed, IMAGE if fixed == "image" else FRAMES) if chosen else 0
    chosen = [r for r in chosen if r.at.get(fixed, at_fixed) == at_fixed]
    sizes = sorted({int(r.at[axis]) for r in chosen})
    lines: dict[tuple[str, str], dict[int, Record]] = {}
    for r in chosen:
        lines.setdefault((r.what, str(r.at.get("dtype", ""))), {})[int(r.at[axis])] = r
    show = tera if name == "flop" else nbytes
    dtypes = len({dtype for _, dtype in lines}) > 1
    rows = [
        (
            what,
            *([dtype] if dtypes else []),
            *(show(line[s].values[name]) if s in line else "–" for s in sizes),
        )
        for (what, dtype), line in lines.items()
    ]
    where = f"frames of {at_fixed}²" if axis == "frames" else f"image size, {at_fixed} frames"
    kind = "TFLOP" if suite == "flops" else "Peak memory"
    headings = ["model", *(["dtype"] if dtypes else []), *(str(size) for size in sizes)]
    title = f"{kind}, {'training step' if mode == 'training' else mode}, over {where}"
    return Table(title, headings, rows if len(sizes) > 1 else [], text=(0, 1) if dtypes else (0,))


def _at_paper(records: Iterable[Record]) -> list[Record]:
    return [r for r in records if (r.at.get("frames"), r.at.get("image", IMAGE)) == (FRAMES, IMAGE)]


def _point(records: Iterable[Record], axis: str, wanted: int) -> int:
    """The wanted point of an axis if something was measured there, else the largest."""
    there = {int(r.at[axis]) for r in records if axis in r.at}
    return wanted if wanted in there or not there else max(there)


def _but(at: dict[str, int | str], axis: str) -> tuple[tuple[str, int | str], ...]:
    return tuple(sorted((k, v) for k, v in at.items() if k != axis))


def _value(table: dict[str, Record], what: str, name: str, shown: Any) -> str:
    return shown(table[what].values[name]) if what in table and name in table[what].values else "–"


def _times(table: dict[str, Record], what: str, base: str, name: str) -> str:
    if what not in table or base not in table:
        return "–"
    mine, theirs = table[base].values.get(name), table[what].values.get(name)
    return f"{three(theirs / mine)}×" if mine and theirs else "–"
