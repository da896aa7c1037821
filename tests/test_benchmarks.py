"""The parts of benchmarks/ that a wrong number could come from: the runners' protocol, ratios, the plot."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import benchmark_scripts
from minicpm.bench.device import Device
from minicpm.bench.report import Figures, Model, Point, Report
from minicpm.quant.format import PRESETS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

PEER = """
import sys
sys.path.insert(0, {folder!r})
from protocol import serve

class Peer:
    facts = {{"version": "1"}}
    def fill(self, depth): print("a library talks"); self.depth = depth
    def prefill(self, tokens): return float(tokens)
    def decode(self, depth, window_s): return depth + window_s
    def batch(self, sequences, window_s): raise MemoryError("no room")
    def verify(self, tokens, window_s): return None

serve(Peer)
"""


@pytest.fixture(autouse=True)
def benchmarks_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_runner_answers_every_line_with_one_and_goes_on_after_an_error():
    lines = "fill 7\nprefill 512\nbatch 8 1.0\nverify 8 1.0\ndecode 7 0.5\n"
    script = PEER.format(folder=str(BENCHMARKS / "peers"))
    done = subprocess.run([sys.executable, "-c", script], input=lines, capture_output=True, text=True, check=True)
    ready, *answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert ready["ready"] == {"version": "1"}
    assert answers == [
        {"value": None},
        {"value": 512.0},
        {"error": "MemoryError: no room"},
        {"value": None},
        {"value": 7.5},
    ]
    assert "a library talks" in done.stderr


def running(name: str, preset: str | None, **windows: list[float]) -> SimpleNamespace:
    from versus_peers import ENTRANTS

    entrant = next(entrant for entrant in ENTRANTS if entrant.name == name)
    assert entrant.preset == preset
    points = {
        point.replace("_", " "): [{"value": value, "peak": 1e9} for value in values]
        for point, values in windows.items()
    }
    return SimpleNamespace(entrant=entrant, windows=points)


def test_a_ratio_is_of_medians_of_windows_that_took_turns():
    from versus_peers import ratios_to_peers

    done = [
        (0, running("minicpm int4-small", "int4-small", decode_0=[30.0, 10.0, 20.0])),
        (0, running("llama.cpp Q4_0", None, decode_0=[10.0, 11.0, 9.0])),
        (1, running("minicpm int4-small", "int4-small", decode_0=[40.0, 42.0, 41.0])),
        (1, running("vllm bf16", None, decode_0=[8.0, 8.2, 9.0])),
    ]
    assert dict(ratios_to_peers("decode 0", "int4-small", done)) == {"llama.cpp Q4_0": 2.0, "vllm bf16": 5.0}
    assert dict(ratios_to_peers("decode 4000", "int4-small", done)) == {}


def test_weights_of_fewer_bits_are_no_peer():
    from versus_peers import ratios_to_peers

    done = [
        (0, running("minicpm bf16", "bfloat16", decode_0=[5.0])),
        (0, running("llama.cpp Q8_0", None, decode_0=[10.0])),
        (0, running("llama.cpp BF16", None, decode_0=[4.0])),
    ]
    assert dict(ratios_to_peers("decode 0", "bfloat16", done)) == {"llama.cpp BF16": 1.25}


def test_a_ratio_of_costs_is_turned_round():
    from versus_peers import ratios_to_peers

    done = [
        (0, running("minicpm int4-small", "int4-small", verify_8=[2.0])),
        (0, running("llama.cpp Q4_0", None, verify_8=[5.0])),
    ]
    assert dict(ratios_to_peers("verify 8", "int4-small", done)) == {"llama.cpp Q4_0": 2.5}


def test_groups_fit_into_memory_with_our_presets_in_each(monkeypatch: pytest.MonkeyPatch):
    import versus_peers
    from versus_peers import ENTRANTS, GB, groups

    monkeypatch.setattr(versus_peers, "free_memory_bytes", lambda: 21 * GB)
    entrants = [entrant for entrant in ENTRANTS if not entrant.is_extra]
    found = list(groups(entrants))
    assert {entrant.name for group in found for entrant in group} == {entrant.name for entrant in entrants}
    for group in found:
        assert {"int4-small", "int4"} <= {entrant.preset for entrant in group}
        assert sum(entrant.memory_bytes for entrant in group) < 20 * GB
    monkeypatch.setattr(versus_peers, "free_memory_bytes", lambda: 12 * GB)
    assert "vllm bf16" not in {entrant.name for group in groups(entrants) for entrant in group}


def test_a_peer_too_large_for_all_our_presets_meets_the_one_of_its_bits(monkeypatch: pytest.MonkeyPatch):
    import versus_peers
    from versus_peers import ENTRANTS, GB, groups

    monkeypatch.setattr(versus_peers, "free_memory_bytes", lambda: 22 * GB)
    named = ("minicpm int8", "minicpm bf16", "llama.cpp Q8_0", "vllm bf16")
    found = list(groups([entrant for entrant in ENTRANTS if entrant.name in named]))
    assert [[entrant.name for entrant in group] for group in found] == [
        ["minicpm int8", "minicpm bf16", "llama.cpp Q8_0"],
        ["minicpm bf16", "vllm bf16"],
    ]


def test_the_plot_is_svg_with_a_panel_a_point_and_a_bar_a_program():
    from plot import drawing

    rows: list[dict[str, object]] = [
        {"point": "decode 0 (tokens/s)", "minicpm int4": "31.2 / 33", "a<b": "10 / 20"},
        {"point": "verify 8 (single steps)", "minicpm int4": "1.9 / 1.8", "a<b": "-"},
        {"program": "minicpm int4"},
        {"program": "a<b"},
    ]
    root = ET.fromstring(drawing(rows))
    panels = [element for element in root if element.tag.endswith("}g")]
    bars = [[bar for bar in panel if bar.tag.endswith("}rect")] for panel in panels]
    assert [len(of_panel) for of_panel in bars] == [2, 1]
    ours, peer = (float(bar.attrib["width"]) for bar in bars[0])
    assert ours / peer == pytest.approx(3.12, rel=0.01)
    assert "a<b" in "".join(root.itertext())


def test_the_readme_quotes_the_newest_full_result_and_nothing_else():
    import report

    readme = (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    result = report.newest_full_result(report.results())
    assert result is not None
    assert report.with_tables(readme, [report.readme_table(result)]) == readme, "run: python benchmarks/report.py"
    shown = readme.split(report.BORDERS[0])[1].split(report.BORDERS[1])[0]
    assert len(report.summary_rows(result["rows"])) == 6
    assert all(str(value) in shown for row in report.summary_rows(result["rows"]) for value in row.values())


def test_the_results_page_is_made_of_the_results_and_nothing_else():
    import report

    page = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
    assert page == report.results_page(report.results()), "run: python benchmarks/report.py"


def test_every_result_names_its_commit():
    import report

    assert all(re.fullmatch("[0-9a-f]{7,}", result["commit"]) for result in report.results())


def test_every_ratio_beside_peers_follows_from_the_figures_in_its_row():
    import report

    rows = [row for result in report.results() if "versus_peers" in result["benchmark"] for row in result["rows"]]
    ratios = 0
    for row in rows:
        for column, cell in row.items():
            preset, is_ratio, _ = column.partition(" / fastest peer")
            if not is_ratio or cell == "-":
                continue
            ratio, peer = report.ratio_of(cell)
            name = f"minicpm {'bf16' if preset == 'bfloat16' else preset}"
            ours, theirs = (float(row[program].partition(" / ")[0]) for program in (name, peer))
            expected = theirs / ours if row["point"].startswith("verify") else ours / theirs
            assert ratio == pytest.approx(expected, abs=0.006)
            ratios += 1
    assert ratios > 20


def test_a_preparation_run_enters_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import costs
    import report

    monkeypatch.setattr(costs, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "HERE", tmp_path)
    costs.write_results("versus_peers", [{"n": 1}], "", is_preparation=True)
    costs.write_results("versus_peers", [{"n": 2}], "")
    assert [result["rows"] for result in report.results()] == [[{"n": 2}]]


def test_the_summary_shows_every_point_beside_the_peer_that_comes_nearest():
    import report

    column = report.RATIO.format(preset="int4", bits=4)
    rows = [
        {"point": "decode 0", "minicpm int4": "16 / 17", "a": "8 / 9", column: "2.00 (a)"},
        {"point": "decode 0", "minicpm int4": "15 / 17", "b": "10 / 11", column: "1.50 (b)"},
        {"point": "verify 8", "minicpm int4": "2 / 2", "a": "-", column: "-"},
    ]
    assert report.summary_rows(rows) == [
        {"point": "decode 0", "minicpm int4": "15", "fastest peer": "b: 10", "ratio": "1.50"}
    ]


def test_a_window_above_the_peak_is_measured_again_and_marked_where_it_stays_there(monkeypatch: pytest.MonkeyPatch):
    import versus_peers

    values = [3.0, 0.5, 4.0, 4.0, 4.0]
    monkeypatch.setattr(
        versus_peers, "measured_window", lambda running, point, peaks: {"value": values.pop(0), "peak": 1.0}
    )
    peer = running("minicpm int4", "int4")
    for _ in range(2):
        versus_peers.one_window(peer, "decode 0", None, work=1.0)
    assert [window["value"] for window in peer.windows["decode 0"]] == [0.5, 4.0]
    assert (versus_peers.percent(0.5), versus_peers.percent(1.18), versus_peers.percent(None)) == (
        "50 %",
        "118 % !",
        "-",
    )


def test_llama_cpp_runs_with_and_without_flash_attention_in_every_table():
    from versus_peers import ENTRANTS, PLAIN_ATTENTION

    for is_of_table in (lambda entrant: not entrant.is_extra, lambda entrant: entrant.is_wide):
        family = [entrant for entrant in ENTRANTS if "llamacpp" in entrant.script and is_of_table(entrant)]
        flash, plain = (
            {entrant.model for entrant in family if (entrant.arguments == PLAIN_ATTENTION) == is_plain}
            for is_plain in (False, True)
        )
        assert flash == plain != set()


def test_devices_shows_the_phones_and_the_contributed_rows_and_nothing_else():
    import report

    document = report.DEVICES.read_text(encoding="utf-8")
    made = [report.phone_table(), report.device_tables(report.device_reports())]
    assert report.with_tables(document, made) == document, "run: python benchmarks/report.py"


def test_a_contributed_row_is_shown_with_what_the_system_did_not_tell():
    import report

    def point(kind: str, size: int, median: float) -> Point:
        share = None if kind == "prefill" else 0.654
        return Point(kind, size, Figures(median, 1.1 * median, 0.9 * median), None, share, None)

    made = Report(
        version=1,
        date="2026-11-27",
        minicpm="0.1.0",
        python="3.11.2",
        device=Device(None, "brcm,bcm2712", "4x Cortex-A76", 4, None, "Linux", "aarch64"),
        model=Model("MiniCPM-2B-int4", "ab" * 32, (), "int4", 1_589_000_000, 195_840),
        backend="native",
        isa="neondot",
        threads=4,
        read_bandwidth=Figures(1.2e10, 1.3e10, 1.1e10),
        integer_peak=None,
        load_s=1.0,
        first_token_s=0.25,
        peak_rss_bytes=None,
        peak_rss_tokens=0,
        speeds=(point("decode", 1024, 4.5), point("decode", 0, 5.0), point("prefill", 128, 1234.0)),
    )
    speeds, facts = (
        dict(zip(*([cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], lines[2]))))
        for part in report.device_tables([made]).strip().split("\n\n")
        for lines in [part.splitlines()]
    )
    assert speeds == {
        "device": "brcm,bcm2712",
        "model": "MiniCPM-2B-int4",
        "precision": "int4",
        "engine": "native, neondot, 4 threads",
        "reads a token (MB)": "1,589",
        "memory read (GB/s)": "12.0 / 13.0",
        "decode (tokens/s)": "at 0: 5 / 5.5; at 1,024: 4.5 / 4.95",
        "of bandwidth": "65 %",
        "prefill (tokens/s)": "of 128: 1,234 / 1,357",
        "first token (s)": "1.25",
        "peak rss (MB)": "-",
    }
    assert (facts["SoC"], facts["memory (GB)"], facts["weights"]) == ("brcm,bcm2712", "-", "-")
    assert facts["their SHA-256"] == "`abababababababab`"


@pytest.mark.parametrize("text", ["no borders", "one of {0}{1} two", "{0} that does not end"])
def test_a_document_without_borders_for_every_table_is_refused(text: str):
    import report

    with pytest.raises(ValueError, match="around each of 2 tables"):
        report.with_tables(text.format(*report.BORDERS), ["one", "two"])


def test_a_ceiling_is_memory_over_weights():
    """Within the published spread, and never above what memory allows."""
    from phones import PHONES

    rows = {phone.name: phone.row() for phone in PHONES}
    assert rows["OPPO Find N3"] | {"system": ""} == {
        "phone": "OPPO Find N3",
        "system": "",
        "memory (GB)": "12",
        "SoC": "Snapdragon 8 Gen 2",
        "its memory (GB/s)": "67.2",
        "at most (tokens/s)": "43.8",
        "published (tokens/s)": "6.5",
        "of the most": "15 %",
    }
    assert rows["iPhone 15 Pro"]["at most (tokens/s)"] == "30.1"
    assert all(phone.tokens_per_s < phone.ceiling for phone in PHONES)


def test_a_recorded_command_names_no_folder_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import costs

    monkeypatch.setattr(costs, "RESULTS", tmp_path)
    script, inside = str(BENCHMARKS / "x.py"), str(BENCHMARKS.parent / "runs" / "2b")
    monkeypatch.setattr(sys, "argv", [script, "--folder", inside, "--peer", f"vllm={tmp_path}/python", "--only", "a b"])
    recorded = json.loads(costs.write_results("x", [], "").read_text(encoding="utf-8"))["command"]
    assert recorded == "python benchmarks/x.py --folder runs/2b --peer vllm=python --only 'a b'"


def test_a_servers_row_has_our_speed_over_its_own():
    from versus_servers import Window, point_rows

    servers = [
        SimpleNamespace(name=name, windows={8: [Window(speed, (0.5,), (0.1, 0.2)) for speed in speeds]})
        for name, speeds in (("minicpm", [90.0, 100.0, 110.0]), ("llama-server", [40.0, 41.0, 20.0]))
    ]
    rows = point_rows({"model": "2b", "group": 1, "streams": 8}, servers)
    assert [(row["server"], row["tokens/s"], row["minicpm / this server"]) for row in rows] == [
        ("minicpm", 100.0, "1.00"),
        ("llama-server", 40.0, "2.50"),
    ]


@pytest.mark.parametrize(("count", "ranks"), [(5, (1, 5)), (9, (2, 8)), (15, (4, 12)), (20, (6, 15)), (25, (8, 18))])
def test_an_interval_is_of_the_order_statistics_that_hold_the_median_with_95_percent(
    count: int, ranks: tuple[int, int]
):
    from versus_self import interval

    assert interval([*range(count, 0, -1)]) == ranks


def test_trees_differ_only_where_the_intervals_of_change_and_control_are_apart():
    from versus_self import row_of

    what = "start to first token (s)"
    same = [({what: 1.0}, {what: 1.0 + 0.01 * (number % 3)}) for number in range(15)]
    slower = [({what: 1.0}, {what: 1.5}) for _ in same]
    assert row_of(what, same, same)["verdict"] == "unchanged"
    assert row_of(what, slower, same)["verdict"] == "slower"
    assert (
        row_of(
            "decode 0 (tokens/s)",
            [({"decode 0 (tokens/s)": 1.0}, {"decode 0 (tokens/s)": 1.5})] * 15,
            [({"decode 0 (tokens/s)": 1.0}, {"decode 0 (tokens/s)": 1.0})] * 15,
        )["verdict"]
        == "faster"
    )


def test_a_comparison_of_ourselves_takes_fifteen_pairs(monkeypatch: pytest.MonkeyPatch):
    from versus_self import parsed

    monkeypatch.setattr(sys, "argv", ["versus_self.py", "--before", "HEAD", "--pairs", "14"])
    with pytest.raises(SystemExit):
        parsed()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--preparation"])
    assert parsed().pairs == 14


def test_old_and_new_run_as_often_first_and_each_in_its_own_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import versus_self

    order: list[str] = []
    monkeypatch.setattr(versus_self, "run", lambda tree, args: order.append(tree.name) or {tree.name: 1.0})
    found = [versus_self.pair(tmp_path / "old", tmp_path / "new", number, None) for number in range(2)]
    assert order == ["old", "new", "new", "old"]
    assert found == [({"old": 1.0}, {"new": 1.0})] * 2


@pytest.fixture
def trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for a training in the background, announced as nano/stages.py does it."""
    import costs
    from stages import start_ticks

    monkeypatch.setattr(costs, "TRAINING", tmp_path / "training.pid")
    with subprocess.Popen(["sleep", "60"]) as process:
        costs.TRAINING.write_text(f"{process.pid} {start_ticks(process.pid)} the stable phase\n")
        yield process
        process.kill()


def test_benchmarks_refuse_to_start_beside_a_training_and_start_while_it_is_paused(trains: subprocess.Popen[bytes]):
    from costs import require_idle_machine

    with pytest.raises(SystemExit, match=f"the stable phase is running in process {trains.pid}.*stages.py pause"):
        require_idle_machine()
    trains.send_signal(signal.SIGSTOP)
    os.waitpid(trains.pid, os.WUNTRACED)
    require_idle_machine()
    trains.send_signal(signal.SIGCONT)
    with pytest.raises(SystemExit):
        require_idle_machine()
    trains.kill()
    trains.wait()
    require_idle_machine()


def test_another_process_with_the_number_of_an_ended_training_stops_no_benchmark(trains: subprocess.Popen[bytes]):
    import costs

    costs.TRAINING.write_text(f"{trains.pid} 1 the stable phase\n")
    costs.require_idle_machine()
    costs.TRAINING.write_text("not a process\n")
    costs.require_idle_machine()


def test_every_benchmark_that_writes_results_asks_for_an_idle_machine_first():
    for path in sorted(BENCHMARKS.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = [
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        assert path.name == "costs.py" or ("write_results" in called) <= ("require_idle_machine" in called), path.name


def test_what_quantize_says_of_a_trained_model_is_what_was_measured():
    result = json.loads((BENCHMARKS / "results" / "quality_real.json").read_text())
    rows = {row["weights"]: row for row in result["rows"]}
    int4, small = rows["int4"], rows["int4-small"]
    cost = PRESETS["int4-small"].cost
    assert "more than twice the perplexity" in cost and small["perplexity"] > 2 * small["reference_perplexity"]
    assert "half of its first choices" in cost and 0.4 < small["top1_agreement"] < 0.55
    assert f"int4: +{int4['perplexity_percent']:.0f} % and a third" in cost and 0.62 < int4["top1_agreement"] < 0.71
    document = (BENCHMARKS.parent / "docs" / "quantization.md").read_text()
    scripts = benchmark_scripts.load("real_weights")
    assert scripts.table(result["rows"], result["note"]) in document
    assert scripts.answer_table(result["answers"]) in document
