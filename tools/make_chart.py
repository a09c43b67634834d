#!/usr/bin/env python3
"""Draws docs/images/speed.svg, README's first figure, from bench/results/: tools/make_chart.py [OUT.svg | -]"""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
WIDTH, BAR_LEFT, BAR_WIDTH, BAR_HEIGHT, STEP = 860, 330, 440, 18, 26
OURS, OTHERS, INK, MUTED = "#0b7a75", "#b4bac2", "#1f2328", "#59636e"

Bar = tuple[str, float, str, bool]  # label, length, what is written behind it, ours?


def rows_of(name: str, **wanted) -> list[dict]:
    """Rows of a results file, each with the fields of its run, that have all of the wanted values."""
    runs = json.loads((RESULTS / name).read_text())["runs"]
    rows = [run | row for run in runs for row in run["rows"]]
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def model_bars() -> list[Bar]:
    rows = rows_of("models_h100.json", case="HunyuanVideo 768x1280x117", compiled=True)
    labels = {
        "dense native_cudnn": "dense, cuDNN",
        "published strategy, 50 steps": "slidetile, the paper's search",
        "3x3x3": "slidetile, window 3x3x3",
    }
    found = {row["attention"]: row for row in rows}
    bars = []
    for name, label in labels.items():
        seconds, ours = found[name]["seconds_for_all_steps"], not name.startswith("dense")
        bars.append((label, seconds, f"{seconds:.0f} s" + (f", {found[name]['speed_up']:.2f}x" if ours else ""), ours))
    return bars


def call_bars(direction: str) -> list[Bar]:
    rows = rows_of("peers_h100.json", case="canvas 30x48x80, 3x3x3", direction=direction)
    sparse = {row["peer"]: min(row["ms"]) for row in rows if "dense" not in row["peer"] and "ms" in row}
    # It takes this canvas with text only.
    for row in rows_of("peers_h100.json", case="3x3x3 with text", direction=direction, peer="published STA kernel"):
        sparse["published STA kernel, with 256 of text"] = min(row["ms"])
    return [(peer, ms, f"{ms:.1f} ms", peer == "slidetile") for peer, ms in sorted(sparse.items(), key=lambda item: -item[1])]


def text(x: float, y: float, content: str, size: int = 13, anchor: str = "start", colour: str = INK, weight: str = "normal") -> str:
    return (
        f'<text x="{x}" y="{y}" font-family="Helvetica, Arial, sans-serif" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}" fill="{colour}">{content}</text>'
    )


def panel(title: str, bars: list[Bar], top: int) -> tuple[list[str], int]:
    longest = max(length for _, length, _, _ in bars)
    parts, y = [text(20, top, title, 14, weight="bold")], top + 12
    for label, length, value, ours in bars:
        width = BAR_WIDTH * length / longest
        weight = "bold" if ours else "normal"
        parts.append(text(BAR_LEFT - 10, y + 14, label, anchor="end", weight=weight))
        parts.append(f'<rect x="{BAR_LEFT}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" rx="2" fill="{OURS if ours else OTHERS}"/>')
        parts.append(text(BAR_LEFT + width + 8, y + 14, value, weight=weight))
        y += STEP
    return parts, y + 28


def main() -> None:
    panels = [
        ("HunyuanVideo's transformer, 117 frames at 768x1280, 50 steps", model_bars()),
        ("One attention call at that shape, window 3x3x3, 24 heads", call_bars("forward")),
        ("Its gradients", call_bars("backward")),
    ]
    body, y = [], 34
    for title, bars in panels:
        parts, y = panel(title, bars, y)
        body += parts
    note = "One H100, bf16; permutes that a library needs are its time. docs/benchmarks.md has the commands."
    body.append(text(20, y - 8, note, 12, colour=MUTED))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 8}" viewBox="0 0 {WIDTH} {y + 8}">'
    picture = "\n".join([head, '<rect width="100%" height="100%" fill="#ffffff"/>', *body, "</svg>"]) + "\n"
    out = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "docs" / "images" / "speed.svg")
    if out == "-":
        sys.stdout.write(picture)
    else:
        pathlib.Path(out).write_text(picture)


if __name__ == "__main__":
    main()
