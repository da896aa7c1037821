"""How nano's tokenizer sees its training text."""

from __future__ import annotations

import random
import re

from make_tokenizer import CHINESE, MARKERS, STRETCH, stretches


def test_stretches_join_to_the_line_and_cut_only_long_chinese_runs():
    draw = random.Random(0)
    for line in (
        "<用户>你好，请给我讲一个关于小兔子的故事吧。",
        "<AI>Hello, my name is 丽丽 and I live here.",
        "中文",
        "",
    ):
        parts = stretches(line, draw)
        assert "".join(parts) == line and all(parts)
        for part in parts:
            for run in CHINESE.findall(part):
                assert run == MARKERS[1] or len(run) <= STRETCH
        assert "<用户>" not in line or parts[0].startswith("<用户>")


def test_english_lines_stay_whole():
    line = "<AI>The cat sat on the mat, and it was happy."
    assert stretches(line, random.Random(0)) == [line]


def test_stretches_begin_anywhere():
    draw = random.Random(1)
    run = "天地玄黄宇宙洪荒日月盈昃"
    firsts = {len(stretches(run, draw)[0]) for _ in range(50)}
    assert firsts == set(range(1, STRETCH + 1)) and not re.search(r"[A-Za-z]", run)
