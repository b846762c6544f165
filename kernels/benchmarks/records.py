"""What was measured: a JSON file for each device, with a plot and a table made from it."""

import json
import platform
import re
import subprocess
import textwrap
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from measuring import PASSES, D, ceilings
from miniclip_kernels.backends import HAS_TRITON
from peers import OURS

RESULTS = Path(__file__).parent.parent / "results"
BLUE, ORANGE, GREEN, RED, GRAY = "#3566a8", "#d9822b", "#3a8f4d", "#c23b3b", "#8a8a8a"
COLORS = {"miniclip": BLUE, "blocks": "#1c2f4f", "registers": "#8fb3e0", "tiled": ORANGE,
          "dense": RED, "eager": RED, "compile": GREEN, "chunked": "#2a9d9d", "memeff": "#7b5ea7",
          "inf-cl": "#8c6d46", "cut-cross-entropy": "#c46aa0", "numpy": GREEN}
STYLE = {  # as the project's other pictures
    "figure.facecolor": "white", "figure.dpi": 120, "font.size": 9, "axes.titlesize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.axisbelow": True, "legend.frameon": False, "figure.constrained_layout.use": True}


def first_line(*command):
    """The first line of a command's output; None if the command is missing or fails."""
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.partition("\n")[0].strip()


def processor() -> str:
    """The processor's name, or its kind if the system gives no name, and the threads in use."""
    told = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", told.read_text()) if told.exists() else []
    return f"{(names or [platform.machine()])[0].strip()}, {torch.get_num_threads()} threads"


def machine(cuda) -> dict:
    """Everything in results/DEVICE.json but the rows."""
    peak, copy = ceilings(cuda)
    driver = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    commit = ("git", "-C", str(RESULTS), "describe", "--always", "--dirty", "--exclude=*")
    return {"device": torch.cuda.get_device_name() if cuda else processor(),
            "driver": first_line(*driver) if cuda else None, "torch": torch.__version__,
            "triton": version("triton") if HAS_TRITON else None,
            "commit": first_line(*commit), "date": date.today().isoformat(),
            "peak_tflops": peak, "copy_gb_s": copy, "rows": []}


def file_name(device) -> str:
    """The file name of a device's record."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", device).strip("-") + ".json"


def write(record, path):
    """Write a line for each row. If the write is cut off, the previous file remains."""
    head = json.dumps(record | {"rows": []}, indent=1).removesuffix("]\n}")
    temporary = path.with_suffix(".tmp")
    rows = ",\n  ".join(map(json.dumps, record["rows"]))
    temporary.write_text(f"{head}\n  {rows}\n ]\n}}\n")
    temporary.replace(path)


def whole(record) -> dict:
    """The rows of forward + backward with figures, at the main D: {implementation: {N: row}}.

    Ours comes first: others are compared with the first.
    """
    found = {}
    for row in record["rows"]:
        if row["pass"] == PASSES[True] and row["D"] == D and row["error"] is None:
            found.setdefault(row["impl"], {})[row["N"]] = row
    return dict(sorted(found.items(), key=lambda item: (*OURS, item[0]).index(item[0])))


def failures(record) -> str:
    """Which rows have no figures, and why: a line for each implementation and reason."""
    sizes = {}
    for row in record["rows"]:
        if row["error"]:
            sizes.setdefault((row["impl"], row["error"]), {})[f"{row['N']:,}"] = None
    lines = [f"{impl}, N = {'; '.join(found)}: {error}" for (impl, error), found in sizes.items()]
    return "\n".join("not measured: " + textwrap.shorten(line, 170) for line in lines)


def decorate(figure, axes, record, more):
    """Add scales, titles (`more` ends the first), and two dashed lines for comparison."""
    sizes, dtype = sorted({row["N"] for row in record["rows"]}), record["rows"][0]["dtype"]
    item = getattr(torch, dtype).itemsize  # bytes
    thin = {"ls": "--", "color": GRAY, "lw": 1, "zorder": 1}
    peak = record["peak_tflops"]
    axes[0].plot(sizes, [8e-9 * N * N * D / peak for N in sizes], **thin)
    axes[0].set(title="Loss and gradient, ms\n(dashed: 4 products at "
                f"{peak:.3g} TFLOP/s){more}", yscale="log")
    axes[1].set(title="Share of that rate\n(dotted: forward pass alone)", ylim=(0, None))
    axes[1].yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes[2].plot(sizes, [4e-6 * N * D * item for N in sizes], **thin)
    axes[2].set(title="Extra memory, MB\n(dashed: inputs and gradients)", yscale="log")
    ticks = sizes if len(sizes) < 6 else sizes[::-2]
    for axis in axes:
        axis.set(xlabel="N, pairs", xscale="log")
        axis.set_xticks(ticks, [f"{N / 1024:g}k" if N >= 1024 else N for N in ticks])
        axis.set_xticks([], minor=True)
    for axis in axes[::2]:
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.yaxis.set_minor_formatter("")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    figure.suptitle(f"{record['device']}, {dtype}, D = {D}, torch {record['torch']}")
    if failures(record):
        figure.supxlabel(failures(record), x=0.01, ha="left", fontsize=6, color=GRAY)


def draw(path):
    """A record → a picture beside it: time, share of peak and memory against N."""
    import matplotlib

    matplotlib.use("Agg")  # files only
    from matplotlib import pyplot as plt

    record = json.loads(path.read_text())
    found = whole(record)
    if not found:
        return
    alone = [(row["N"], row["share_of_peak"]) for row in record["rows"] if row["D"] == D
             and row["pass"] == PASSES[False] and row["impl"] == next(iter(found))
             and row["error"] is None]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.8))
        for axis, key in zip(axes, ("ms_p50", "share_of_peak", "extra_mb")):
            for impl, rows in found.items():
                some = {N: row[key] for N, row in rows.items() if row[key] > 0}  # no log of 0 MB
                axis.plot(list(some), list(some.values()), "o-", label=impl, ms=3,
                          color=COLORS[impl], lw=2 if impl in OURS else 1.2,
                          zorder=3 if impl in OURS else 2)
        ours, rows = next(iter(found.items()))
        host = [(N, row["host_ms"]) for N, row in rows.items() if "host_ms" in row]
        for axis, points in ((axes[0], host), (axes[1], alone)):
            axis.plot(*zip(*points), ":", color=COLORS[ours], lw=1.5)
        more = "\n(dotted: until Python has asked for it)" if host else ""
        decorate(figure, axes, record, more)
        figure.savefig(path.with_suffix(".png"), metadata={"Software": None})  # no version, no date
        plt.close(figure)


def digits(x: float) -> str:
    """x with three digits: about as many as two measurements have in common."""
    return f"{x:.3g}" if x < 1000 else f"{float(f'{x:.3g}'):,.0f}"


def markdown(lines: list[list[str]]) -> str:
    """A header and rows, all columns aligned to the right."""
    header, *rows = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---:"] * len(header), *rows))


def table(record, without=()) -> str:
    """The main figures in Markdown: milliseconds, forward and backward, and how they compare."""
    found = {impl: rows for impl, rows in whole(record).items() if impl not in without}
    if not found:
        return "no figures"
    (ours, own), *peers = found.items()
    lines = [["N", f"{ours}, ms", "of peak", "extra MB", *(f"{impl}, ms" for impl, _ in peers)]]
    for N, row in own.items():
        line = [f"{N:,}", digits(row["ms_p50"]), f"{row['share_of_peak']:.0%}",
                f"{row['extra_mb']:,.0f}"]
        for _, rows in peers:
            ms = rows[N]["ms_p50"] if N in rows else None
            line.append(f"{digits(ms)} ({ms / row['ms_p50']:.1f} ×)" if ms else "—")
        lines.append(line)
    return markdown(lines)


PEER_NAMES = {"compile": "`torch.compile`", "memeff": "`memeff`"}


def brief_table(record, peers=("compile", "memeff")) -> str:
    """The columns that decide: our time, share of peak, memory, and how many times as long others
    take."""
    found = whole(record)
    lines = [["N", "miniclip, ms", "share of peak", "extra memory, MB",
              *(f"{PEER_NAMES[impl]} takes" for impl in peers)]]
    for N, row in found["miniclip"].items():
        line = [f"{N:,}", digits(row["ms_p50"]), f"{row['share_of_peak']:.0%}",
                f"{row['extra_mb']:,.0f}"]
        for impl in peers:
            other = found[impl].get(N)
            line.append(f"{other['ms_p50'] / row['ms_p50']:.1f} ×" if other else "—")
        lines.append(line)
    return markdown(lines)


def verdict(record) -> str:
    """The tiled backend on a CPU against its target, at the largest N that was measured."""
    found = whole(record)
    both = set(found.get("tiled", ())) & set(found.get("dense", ()))
    if not both:
        return "tiled and dense were not both measured: nothing to compare"
    tiled, dense = (found[impl][max(both)] for impl in ("tiled", "dense"))
    faster = dense["ms_p50"] / tiled["ms_p50"]
    return (f"N={max(both)}, forward + backward: tiled is {faster:.2f} × faster than dense, with "
            f"{tiled['extra_mb']:,.0f} MB against {dense['extra_mb']:,.0f} MB extra\n"
            "(asked at N=8192: at least 1.5 ×, with at most a fifth)")
