"""The benchmarks of the loss: what they write and draw, and how peers fail. Speed is not tested."""

import ast
import json
import re
import sys
from math import nan
from pathlib import Path

import bench_clip_loss as benchmark
import bench_uses
import measuring
import peers
import pytest
import records
import torch
from kernel_truth import DEVICE, TRITON

KEYS = ["device", "driver", "torch", "triton", "commit", "date", "peak_tflops", "copy_gb_s", "rows"]
ROW = ["impl", "pass", "dtype", "N", "D", "ms_p20", "ms_p50", "ms_p80", "extra_mb",
       "share_of_peak", "error"]
PEERS = {"memeff": "memeff", "inf-cl": "inf_cl", "cut-cross-entropy": "cut_cross_entropy"}


@pytest.fixture
def quick(monkeypatch):
    """No large matrix product, no processes for memory, and three turns each."""
    monkeypatch.setattr(records, "ceilings", lambda cuda: (0.4, 20.0))
    monkeypatch.setattr(measuring, "memory_elsewhere", lambda impl, N: [1000 * N, 2_500_000])
    monkeypatch.setattr(measuring, "CPU_SECONDS", 0.0)


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    return benchmark.main()


def only(folder, pattern):
    found, = folder.glob(pattern)
    return found


def test_a_run_writes_what_is_documented(quick, monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, "--sizes", 40, 16, "--out", tmp_path / "new") == 0
    path = only(tmp_path / "new", "*.json")
    assert path.name == records.file_name(records.processor())
    assert path.stem.endswith("-threads")
    record = json.loads(path.read_text())
    assert list(record) == KEYS
    assert record["torch"] == torch.__version__ and record["peak_tflops"] == 0.4
    assert all(list(row) == ROW for row in record["rows"])
    assert [row["N"] for row in record["rows"]] == 6 * [16] + 6 * [40]  # whatever was first
    assert {(row["impl"], row["pass"], row["N"]) for row in record["rows"]} == {
        (impl, way, N) for impl in ("dense", "tiled", "numpy") for N in (16, 40)
        for way in ("forward", "forward+backward")}
    for row in record["rows"]:
        assert row["error"] is None and row["dtype"] == "float32" and row["D"] == 512
        assert 0 < row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
        products = 4 if row["pass"] == "forward+backward" else 1
        rate = products * 2 * row["N"]**2 * 512 / (row["ms_p50"] / 1000) / 0.4e12
        assert row["share_of_peak"] == pytest.approx(rate, abs=1e-4)
        assert row["extra_mb"] == (2.5 if products == 4 else round(row["N"] / 1000, 1))
    out = capsys.readouterr().out
    assert "| N | tiled, ms |" in out and "N=40, forward + backward: tiled is" in out
    assert "triton is not among them" in out


def test_pictures_are_the_same_bytes_when_drawn_again(quick, monkeypatch, tmp_path):
    run(monkeypatch, "--sizes", 16, 24, "--impls", "tiled", "dense", "--out", tmp_path)
    picture = only(tmp_path, "*.png")
    before = picture.read_bytes()
    picture.unlink()
    assert run(monkeypatch, "--plot", "--out", tmp_path) == 0
    assert only(tmp_path, "*.png").read_bytes() == before
    assert before.startswith(b"\x89PNG") and b"Software" not in before


def test_a_run_that_is_cut_off_keeps_what_it_had(quick, monkeypatch, tmp_path):
    measure = benchmark.measure

    def interrupted(cells, cuda):
        if len(cells[0].features[0]) == 24:
            raise KeyboardInterrupt
        measure(cells, cuda)

    monkeypatch.setattr(benchmark, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, "--sizes", 16, 24, "--out", tmp_path)
    rows = json.loads(only(tmp_path, "*.json").read_text())["rows"]
    assert {row["N"] for row in rows} == {16}


def wrong(I, T, s):  # noqa: E741
    """The loss of a backend that leaves half of the pairs out."""
    return peers.CPU_IMPLS["dense"](I[::2], T[::2], s)


def test_wrong_results_are_no_figures_but_a_peers_are(quick, monkeypatch, tmp_path, capsys):
    """Ours must not look fast because it does less. A wrong peer is only reported."""
    monkeypatch.setitem(peers.CPU_IMPLS, "tiled", wrong)
    assert run(monkeypatch, "--sizes", 64, "--impls", "dense", "tiled", "--out", tmp_path) == 0
    out, rows = capsys.readouterr().out, json.loads(only(tmp_path, "*.json").read_text())["rows"]
    for row in rows:
        assert (row["error"] or "").startswith("loss and norms") == (row["impl"] == "tiled")
    assert "tiled, forward+backward: loss and norms of the gradients are 3." in out
    cells = [measuring.Cell(name, None, True, [], found=found)
             for name, found in (("dense", [4.0, 1.0]), ("peer", [5.0, None]),
                                 ("tiled", [4.0, nan]), ("other", [4.0, None]))]
    measuring.compare(cells)
    assert [cell.impl for cell in cells if cell.error] == ["tiled"]
    out = capsys.readouterr().out
    assert "peer, forward+backward: loss and norms of the gradients are 5, none, of dense 4" in out
    assert "other" not in out


def test_a_gpu_that_broke_down_ends_the_run(quick, monkeypatch, tmp_path, capsys):
    """What was measured before is kept; nothing after it gets an error that isn't its own."""
    def broken(error):
        raise measuring.BrokenDevice(f"the GPU takes no more work from this process: {error}")

    def fail(*features):
        raise RuntimeError("an illegal memory access was encountered")

    attempt = measuring.Cell.attempt
    monkeypatch.setattr(measuring, "check_device", broken)
    monkeypatch.setattr(measuring.Cell, "attempt", lambda cell, work, cuda: attempt(
        cell, lambda cell, _: work(cell, False), cell.impl == "tiled"))
    assert run(monkeypatch, "--sizes", 16, "--impls", "dense", "--out", tmp_path) == 0
    monkeypatch.setitem(peers.CPU_IMPLS, "tiled", fail)
    assert run(monkeypatch, "--sizes", 16, "--impls", "tiled", "dense", "--out", tmp_path) == 1
    assert "illegal memory access was encountered; what was" in capsys.readouterr().err
    row, = json.loads(only(tmp_path, "*.json").read_text())["rows"]
    assert row["impl"] == "tiled" and "illegal memory access" in row["error"]


@pytest.mark.parametrize("arguments, message", [
    (["--gpu"], "--gpu needs CUDA"), (["--plot"], "no records to draw")])
def test_what_cannot_be_done_is_said_in_a_line(arguments, message, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(monkeypatch, *arguments, "--out", tmp_path) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--sizes", "0"], ["--sizes", "x"], ["--impls", "nobody"],
                                       ["--gpu", "--impls", "numpy"],
                                       ["--impls", "numpy", "--sizes", "2048"]])
def test_bad_arguments_are_refused(arguments, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit) as refused:
        run(monkeypatch, *arguments)
    assert refused.value.code == 2 and "error:" in capsys.readouterr().err


def gpu_record(names, N=48):
    """Rows of the GPU's implementations, run on the CPU, where most of them can't."""
    features = measuring.inputs(N, 512, False)
    cells = [measuring.Cell(name, peers.GPU_IMPLS[name], both, features)
             for both in (False, True) for name in names]
    measuring.measure(cells, False)
    head = dict.fromkeys(KEYS) | {"device": "pretended", "peak_tflops": 1.0}
    return head | {"rows": [cell.row(1.0) for cell in cells]}


def test_a_missing_peer_costs_its_own_row_only(quick, monkeypatch, tmp_path):
    for module in PEERS.values():
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    record = gpu_record(["eager", *PEERS])
    for row in record["rows"]:
        assert list(row) == ROW
        if row["impl"] == "eager":
            assert row["error"] is None and row["ms_p50"] > 0
        else:
            assert PEERS[row["impl"]] in row["error"] and "\n" not in row["error"]
            assert [row[key] for key in measuring.FIGURES] == [None] * 5
    assert [line.split(":")[1].split(",")[0].strip()
            for line in records.failures(record).splitlines()] == list(PEERS)
    records.write(record, tmp_path / "some.json")
    records.draw(tmp_path / "some.json")
    assert "memeff" not in records.table(record) and "| 48 |" in records.table(record)


def test_of_a_record_without_figures_nothing_is_drawn(quick, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "memeff", None)
    records.write(gpu_record(["memeff"]), tmp_path / "none.json")
    assert run(monkeypatch, "--plot", "--out", tmp_path) == 0
    assert "no figures" in capsys.readouterr().out and not (tmp_path / "none.png").exists()


def test_the_loss_as_people_use_it(monkeypatch, tmp_path, capsys):
    """Small: every use has a row, with both times; what is timed is what is said."""
    monkeypatch.setattr(records, "ceilings", lambda cuda: (0.4, 20.0))
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(bench_uses, "SIZES", {False: 64, True: 64})
    monkeypatch.setattr(bench_uses, "TURNS", {False: 2, True: 2})
    monkeypatch.setattr(sys, "argv", ["bench_uses"])
    bench_uses.main()
    record = json.loads(only(tmp_path / "uses", "*.json").read_text())
    assert [(row["use"], row["N"]) for row in record["rows"]] == [
        ("both towers", 64), ("images frozen", 64), ("texts frozen", 64), ("under autocast", 64),
        ("sigmoid, auto", 64), ("float32", 64), ("one rank of 8", 128), ("one rank of 64", 256)]
    assert all(row["ms"] > 0 and row["open_clip_ms"] > 0 for row in record["rows"])
    assert capsys.readouterr().out.count(" ×\n") == 8


def test_what_is_timed_as_open_clips_is_right():
    """Its gradients, averaged over two ranks, are those of the whole batch."""
    I, T, scale = measuring.inputs(24, 512, False)  # noqa: E741
    whole = torch.autograd.grad(peers.eager(I, T, scale), [I, T, scale])
    ranks = [bench_uses.two_slabs(I.detach()[:12], I, T, scale, rank) for rank in range(2)]
    for x, y, expected in zip(*ranks, whole, strict=True):
        torch.testing.assert_close((x + y) / 2, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["eager", "chunked", "tiled"])
def test_peers_that_run_here_give_the_same_loss_and_gradients(name, monkeypatch):
    monkeypatch.setattr(peers, "CHUNK", 32)
    features = measuring.inputs(80, 64, False)
    truth = peers.CPU_IMPLS["dense"](*features)
    found = peers.GPU_IMPLS[name](*features)
    torch.testing.assert_close(found, truth)
    for a, b in zip(torch.autograd.grad(found, features), torch.autograd.grad(truth, features)):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_memory_is_what_dense_must_hold():
    forward, both = measuring.memory_elsewhere("dense", 1024)  # a matrix of 1024² float32: 4.2 MB
    assert 4e6 < forward < 60e6 and 4e6 < both < 60e6


def test_the_plan():
    cpu = list(benchmark.plan(False, None, peers.CPU_IMPLS))
    assert {N for N, _, names in cpu if "numpy" in names} == {512, 1024}
    assert {N for N, _, names in cpu if {"tiled", "dense"} <= set(names)} == set(
        benchmark.CPU_SIZES)
    gpu = list(benchmark.plan(True, None, peers.GPU_IMPLS))
    assert (8192, 512, list(peers.GPU_IMPLS)) in gpu
    assert (65536, 512, [name for name in peers.GPU_IMPLS if name != "tiled"]) in gpu
    assert [(N, D) for N, D, names in gpu if names == ["miniclip", "blocks", "registers"]] == [
        (131072, 512), (65536, 256), (65536, 768), (65536, 1024)]
    assert gpu[-1] == (2**20, 512, ["miniclip"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_run_on_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "ceilings", lambda cuda: (800.0, 3000.0))
    run(monkeypatch, "--gpu", "--sizes", 256, 1000, "--out", tmp_path)
    rows = json.loads(only(tmp_path, "*.json").read_text())["rows"]
    ours = [row for row in rows if row["impl"] in (
        "miniclip", "registers", "chunked", "eager", "compile")]
    assert len(ours) == 20 and not [row["error"] for row in ours if row["error"]]
    assert all(0 < row["ms_p50"] and 0 < row["host_ms"] for row in ours)


# ------------------------------------------------------------------------------ make tune-gpu


@pytest.mark.slow
@pytest.mark.parametrize("_", [TRITON])
def test_candidates_are_tried_and_the_kernels_left_as_they_were(_, quick, monkeypatch, tmp_path):
    import tune_clip_loss as tune
    from miniclip_kernels import triton_blocks, triton_loss, triton_tiles

    monkeypatch.setattr(tune, "SECONDS", 0.0)
    candidates = [{}, {"BLOCK_M": 32}, {"BLOCK_N": 48}, {"BLOCK": 32}, {"GROUPS": 1}]
    monkeypatch.setattr(tune, "CANDIDATES", dict.fromkeys(("sums", "block"), candidates))
    before = triton_tiles.launch_options, triton_loss.GROUPS, triton_blocks.BLOCK
    record = json.loads(tune.tune(40, 16, ["sums", "block"], tmp_path, DEVICE == "cuda")
                        .read_text())
    assert list(record) == [*KEYS[:-1], "N", "D", "rows"]
    for kernel in ("sums", "block"):
        *good, bad = [row for row in record["rows"] if row["kernel"] == kernel]
        assert [row["ms_p50"] for row in good] == sorted(row["ms_p50"] for row in good)
        assert bad["settings"] == {"BLOCK_N": 48} and "power of 2" in bad["error"]
        assert len(good) == 4 and not any(row["error"] for row in good)
    assert (triton_tiles.launch_options, triton_loss.GROUPS, triton_blocks.BLOCK) == before


@pytest.mark.parametrize("_", [TRITON])
def test_a_candidate_is_what_is_launched(_):
    import tune_clip_loss as tune
    from miniclip_kernels import triton_tiles

    def options():
        return {name: triton_tiles.launch_options(name, torch.float32, 4, (9, 0))
                for name in ("sums", "block", "gradient")}

    usual = options()
    with tune.settings("sums", {"BLOCK_M": 16, "BLOCK_K": None}):
        changed = options()
    assert changed["sums"]["BLOCK_M"] == 16 and "BLOCK_K" not in changed["sums"]
    assert changed["block"] == usual["block"] and changed["gradient"] == usual["gradient"]


def test_tuning_needs_a_gpu(monkeypatch, capsys):
    tune = pytest.importorskip("tune_clip_loss")
    monkeypatch.setattr(sys, "argv", ["tune"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main() == 2 and "needs CUDA" in capsys.readouterr().err


def test_the_readmes_figures_of_a_gpu_are_the_recorded_ones():
    """The figures of both READMEs, and what the text concludes from them."""
    folder = records.RESULTS.parent
    record = json.loads((folder / "results/NVIDIA-H200.json").read_text())
    ours, all_ = ((path / "README.md").read_text() for path in (folder, folder.parent))
    digits = records.digits
    assert records.table(record, peers.OURS[1:]) in ours
    assert records.brief_table(record) in all_
    found = {(row["impl"], row["pass"], row["D"]): row for row in record["rows"]
             if row["N"] == 65536}
    for D in (256, 512, 768, 1024):
        one, both, blocks, registers = (
            found[impl, measuring.PASSES[way], D] for impl, way in (
                ("miniclip", 0), ("miniclip", 1), ("blocks", 1), ("registers", 1)))
        assert (f"| {D:,} | {digits(one['ms_p50'])} | {one['share_of_peak']:.0%} | "
                f"{digits(both['ms_p50'])} | {both['share_of_peak']:.0%} | {both['extra_mb']:.0f} |"
                f" {digits(blocks['ms_p50'])} | {digits(registers['ms_p50'])} |") in ours
    both, blocks, registers = (
        found[impl, measuring.PASSES[True], 512] for impl in ("miniclip", "blocks", "registers"))
    for name, row in (("hopper", both), ("blocks", blocks), ("triton", registers)):
        share = f"{row['share_of_peak']:.0%}".replace("%", " %")
        assert re.search(rf"\| `{name}` \| \d \|.*\| {share} \|\n", ours)
    assert (f"{both['ms_p50']:.0f} ms and {both['extra_mb']:.0f} MB: "
            f"{100 * both['share_of_peak']:.0f} %") in all_
    times = [f"{found[impl, measuring.PASSES[True], 512]['ms_p50'] / both['ms_p50']:.1f}"
             for impl in ("compile", "memeff")]
    assert (f"65,536 pairs take {both['ms_p50']:.0f} ms, {times[0]} times as\nfast as "
            f"`torch.compile` and {times[1]} times as fast as `memeff`") in ours
    more = sorted(f"{100 * row['share_of_peak']:.0f}" for row in record["rows"] if row["N"] > 65536
                  and row["impl"] == "miniclip" and row["pass"] == measuring.PASSES[True])
    assert f"({' to '.join(more)} % with more pairs)" in all_
    lesson = " ".join((folder.parent / "lessons/10_kernel.md").read_text().split())
    floor = 8 * 65536**2 * 512 / record["peak_tflops"] / 1e9
    assert (f"the first way took {registers['ms_p50']:.0f} ms and the second "
            f"{blocks['ms_p50']:.0f}, where four products alone take {floor:.0f}") in lesson
    narrow = [f"{found[impl, measuring.PASSES[True], 256]['ms_p50']:.0f}"
              for impl in ("registers", "blocks")]
    assert f"With 256 features it was {' against '.join(narrow)}" in lesson
    assert (f"With turns the {blocks['ms_p50']:.0f} ms become {both['ms_p50']:.0f}: nine tenths"
            in lesson)
    host = {(row["impl"], row["N"]): f"{row['host_ms']:.1f}" for row in record["rows"]
            if "host_ms" in row and row["pass"] == measuring.PASSES[True]}
    for text in ("1.4 and 1.6 ms for ours", "1.1 and 0.9 for `memeff`", "1.2 and 1.0 compiled",
                 "fewer kernels (0.8 and 1.1)"):
        assert text in ours
    for impl, figures in (("miniclip", ["1.4", "1.6"]), ("memeff", ["1.1", "0.9"]),
                          ("compile", ["1.2", "1.0"]), ("registers", ["0.8", "1.1"])):
        assert [host[impl, N] for N in (4096, 8192)] == figures


TRIED = {  # what kernels/README.md says that was tried, and the settings in the record
    "sums": {"2 stages": (128, 128, 64, 8, 2, 128), "32": (128, 128, 32, 8, 4, 128),
             "128 features a step": (128, 128, 128, 8, 2, None),
             "128 × 256": (128, 256, 64, 8, 3, None), "256 × 128": (256, 128, 64, 8, 3, None),
             "64 × 256": (64, 256, 64, 4, 3, None), "128 × 64": (128, 64, 64, 4, 4, None),
             "cap of registers": (128, 128, 64, 8, 3, None), "half as many": {"GROUPS": 128},
             "twice as many": {"GROUPS": 512}},
    "block": {"2 stages": (128, 128, 64, 8, 2, None), "32": (128, 128, 32, 8, 4, None),
              "128 features a step": (128, 128, 128, 8, 2, None),
              "128 × 256": (128, 256, 64, 8, 3, None), "256 × 128": (256, 128, 64, 8, 3, None),
              "64 × 256": (64, 256, 64, 4, 3, None), "four warps": (128, 128, 64, 4, 3, None),
              "blocks of 16,384²": {"BLOCK": 16384}},
    "gradient": {"2 stages": {"num_stages": 2}, "4 stages": {"num_stages": 4},
                 "128 features a step": {"BLOCK_K": 128, "num_stages": 2}, "64 rows": {"TILE": 64},
                 "with four warps": {"TILE": 64, "num_warps": 4},
                 "with all features": {"TILE": 64, "BLOCK_D": 512}},
    "hopper sums": {}, "hopper block": {"blocks of 16,384²": {"BLOCK": 16384}}}
LABELS = {"hopper sums": "`hopper`, sums", "hopper block": "`hopper`, G"}


@pytest.mark.parametrize("kernel", TRIED)
def test_the_readmes_shares_of_tiles_are_the_recorded_ones(kernel):
    from tune_clip_loss import NAMES

    folder = records.RESULTS.parent
    rows = json.loads((folder / "results/tiles/NVIDIA-H200-512.json").read_text())["rows"]
    share = {str(row["settings"]): f"{row['share_of_peak']:.0%}"[:-1] + " %" for row in rows
             if row["kernel"] == kernel}
    expected = [share["{}"]]
    line, = [line for line in (folder / "README.md").read_text().splitlines() if re.match(
        rf"\| {LABELS.get(kernel, f'`{kernel}`')} \| {expected[0]} \|", line)]
    for phrase, settings in TRIED[kernel].items():
        assert phrase in line
        expected.append(share[str(settings if isinstance(settings, dict)
                                  else dict(zip(NAMES, settings)))])
    assert sorted(re.findall(r"\d+ %", line)) == sorted(expected)


def mistakes_of(name: str) -> int:
    """How many mistakes a neighbouring test knows, which need not be imported for that."""
    tree = ast.parse(Path(__file__).with_name(name).read_text())
    values = {node.targets[0].id: node.value for node in tree.body
              if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}
    streamed = values.get("STREAMED_MISTAKES")
    return len(values["MISTAKES"].keys) + (len(streamed.keys) if streamed else 0)


def test_the_readmes_numbers_of_mistakes():
    hopper, mutants = (mistakes_of(name) for name in ("test_hopper.py", "test_mutants.py"))
    text = (records.RESULTS.parent / "README.md").read_text()
    assert f"Then {mutants} mistakes are put into copies" in text
    assert f"{hopper} mistakes in copies of this file" in text
    lesson = (records.RESULTS.parents[1] / "lessons/10_kernel.md").read_text()
    assert f"and {hopper} copies of it with\none mistake each" in lesson


def test_the_readmes_figures_are_the_recorded_ones():
    """kernels/README.md's tables of CPUs are what kernels/results holds, to three digits."""
    folder = records.RESULTS.parent
    text = (folder / "README.md").read_text()
    names = re.findall(r"\(results/([\w.-]+-threads\.json)\)", text)
    assert len(names) == 2
    for name in names:
        rows = json.loads((folder / "results" / name).read_text())["rows"]
        found = {(r["impl"], r["N"]): r for r in rows if r["pass"] == "forward+backward"}
        for N in (512, 1024, 2048, 4096, 8192):
            ours, dense = found["tiled", N], found["dense", N]
            line = (f"| {N:,} | {records.digits(ours['ms_p50'])} | {ours['share_of_peak']:.0%} | "
                    f"{ours['extra_mb']:.0f} | {records.digits(dense['ms_p50'])} | "
                    f"{dense['extra_mb']:,.0f} |")
            assert line in text


def test_the_readmes_uses_are_the_recorded_ones():
    folder = records.RESULTS.parent
    text = (folder / "README.md").read_text()
    names = re.findall(r"\(results/uses/([\w.-]+\.json)\)", text)
    assert names
    for name in names:
        for row in json.loads((folder / "results/uses" / name).read_text())["rows"]:
            ours, theirs = row["ms"], row["open_clip_ms"]
            assert (f"| {row['use']} | {row['N']:,} | {ours:.3g} | {theirs:.3g} | "
                    f"{theirs / ours:.2f} × |") in text, row
