"""Counting, spelling, sums and comparisons: every answer is computed. Knows nothing of conversations."""

from __future__ import annotations

import random

from bilingual.language import Both, Exchange, both, count_zh, number, number_en, number_zh
from bilingual.words import animals, noun, person, things

# Things that are counted in word problems: noun, and verbs of getting and losing, as (gets, loses).
COUNTED = [
    (noun("apple", "苹果", "个"), ("picks", "摘了"), ("eats", "吃了")),
    (noun("pear", "梨", "个"), ("buys", "买了"), ("eats", "吃了")),
    (noun("egg", "鸡蛋", "个"), ("buys", "买了"), ("breaks", "打碎了")),
    (noun("book", "书", "本"), ("gets", "得到"), ("gives away", "送出")),
    (noun("pencil", "铅笔", "支"), ("buys", "买了"), ("loses", "丢了")),
    (noun("ball", "球", "个"), ("finds", "找到"), ("loses", "丢了")),
    (noun("flower", "花", "朵"), ("picks", "摘了"), ("gives away", "送出")),
    (noun("cookie", "饼干", "块"), ("bakes", "烤了"), ("eats", "吃了")),
    (noun("candy/candies", "糖", "颗"), ("gets", "得到"), ("eats", "吃了")),
    (noun("card", "卡片", "张"), ("makes", "做了"), ("sends away", "寄出")),
    (noun("balloon", "气球", "个"), ("buys", "买了"), ("loses", "飞走了")),
    (noun("coin", "硬币", "枚"), ("finds", "捡到"), ("spends", "花掉")),
    (noun("stone", "石头", "块"), ("finds", "捡到"), ("throws away", "扔掉")),
    (noun("orange", "橙子", "个"), ("buys", "买了"), ("eats", "吃了")),
    (noun("fish/fish", "鱼", "条"), ("catches", "钓到"), ("sells", "卖掉")),
    (noun("cup", "杯子", "个"), ("buys", "买了"), ("breaks", "打碎了")),
]


def _sum_asked(draw: random.Random, a: int, b: int, sign: str) -> Both:
    en_word = {"+": "plus", "-": "minus", "*": draw.choice(["times", "times", "multiplied by"]), "/": "divided by"}[
        sign
    ]
    zh_word = {"+": draw.choice(["加", "加上"]), "-": draw.choice(["减", "减去"]), "*": "乘以", "/": "除以"}[sign]
    shown = {"*": draw.choice(["*", "×", "x"]), "/": draw.choice(["/", "÷"])}.get(sign, sign)
    numbers = {"a": a, "b": b, "w": Both(en_word, zh_word), "s": shown}
    return both(
        draw,
        "What is {a} {s} {b}? / {a} {s} {b} = ? / What is {a} {w} {b}? / How much is {a} {w} {b}? / {a} {s} {b} / "
        "Calculate {a} {s} {b}. / What do you get for {a} {w} {b}? / {a}{s}{b}=",
        "{a} {s} {b} 等于[几|多少]？ / {a}{s}{b}=？ / {a}{w}{b}等于[几|多少]？ / {a}{w}{b}是多少？ / {a}{s}{b} / "
        "计算{a} {s} {b}。 / "
        "算一算{a}{w}{b}。 / {a}{s}{b}得[几|多少]？",
        **numbers,
    )


def _sum_answer(draw: random.Random, a: int, b: int, sign: str, result: int) -> Both:
    en_word = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[sign]
    zh_word = {"+": "加", "-": "减", "*": "乘以", "/": "除以"}[sign]
    return Both(f"{a} {en_word} {b} is {result}.", f"{a}{zh_word}{b}等于{result}。")


def easy_sum(draw: random.Random, largest: int) -> tuple[int, int, str, int]:
    """Numbers of a sum or difference within 0 to `largest`."""
    if draw.random() < 0.55:
        result = draw.randint(2, largest)
        a = draw.randint(0, result)
        return a, result - a, "+", result
    a = draw.randint(1, largest)
    b = draw.randint(0, a)
    return a, b, "-", a - b


def arithmetic(draw: random.Random) -> list[Exchange]:
    """One sum, mostly of numbers up to 20; with tens carried step by step where the numbers are larger."""
    chance = draw.random()
    if chance < 0.5:
        a, b, sign, result = easy_sum(draw, 20)
    elif chance < 0.75:
        a, b, sign, result = easy_sum(draw, 100)
    elif chance < 0.92:
        a, b = draw.randint(1, 10), draw.randint(1, 10)
        sign, result = "*", a * b
    else:
        b, result = draw.randint(1, 10), draw.randint(1, 10)
        a, sign = b * result, "/"
    answer = _sum_answer(draw, a, b, sign, result)
    return [Exchange(_sum_asked(draw, a, b, sign), answer, Both(str(result), str(result)), {"sum": (a, b, sign)})]


def sum_in_steps(draw: random.Random) -> list[Exchange]:
    """A sum of two-digit numbers, worked out by tens and ones."""
    a, b = draw.randint(11, 89), draw.randint(11, 89)
    if a + b > 100:
        a, b = a // 2 + 5, b // 2 + 5
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    asked = both(
        draw,
        "What is {a} + {b}? Show the steps. / Add {a} and {b} step by step. / How do I add {a} and {b}?",
        "{a} + {b} 等于多少？请写出步骤。 / 一步一步地算{a}加{b}。 / {a}加{b}怎么算？",
        a=a,
        b=b,
    )
    answer = Both(
        f"Tens: {a // 10 * 10} + {b // 10 * 10} = {tens}. Ones: {a % 10} + {b % 10} = {ones}. "
        f"Together: {tens} + {ones} = {a + b}.",
        f"先算十位：{a // 10 * 10} + {b // 10 * 10} = {tens}。再算个位：{a % 10} + {b % 10} = {ones}。"
        f"合起来：{tens} + {ones} = {a + b}。",
    )
    return [Exchange(asked, answer)]


def word_problem(draw: random.Random) -> list[Exchange]:
    """Somebody has so many of something, and gets or loses some."""
    who = person(draw)
    thing, gets, loses = draw.choice(COUNTED)
    a, b, sign, result = easy_sum(draw, 20)
    while a == 0 or b == 0:
        a, b, sign, result = easy_sum(draw, 20)
    more = " more" if sign == "+" else ""
    verb_en, verb_zh = gets if sign == "+" else loses
    again = "又" if sign == "+" else ""
    left = both(
        draw,
        "How many {t.plural} does {n} have now?" if sign == "+" else "How many {t.plural} are left?",
        "{n}现在[一共|]有[几|多少]{c}{t}？" if sign == "+" else "还剩[几|多少]{c}{t}？",
        t=thing,
        n=who.name,
        c=thing.zh.c,
    )
    facts = both(
        draw,
        "{n} has {a}. Then {he} {v} {b}{m}.",
        "{n}有{a}，{g}{v}{b}{c}。",
        n=who.name,
        a=thing.some(a),
        he=who.he,
        v=Both(verb_en, verb_zh),
        b=b,
        m=more,
        g=again,
        c=thing.zh.c,
    )
    word = "plus" if sign == "+" else "minus"
    noun_en = thing.en if result == 1 else thing.en.plural
    has = Both(
        f"{who.name.en} has {result} {noun_en} now, because {a} {word} {b} is {result}."
        if sign == "+"
        else f"{a} {word} {b} is {result}, so {result} {noun_en} {'is' if result == 1 else 'are'} left.",
        f"{a}{'加' if sign == '+' else '减'}{b}等于{result}，"
        + (
            f"{who.name.zh}现在有{result}{thing.zh.c}{thing.zh}。"
            if sign == "+"
            else f"所以还剩{result}{thing.zh.c}{thing.zh}。"
        ),
    )
    asked = Both(f"{facts.en} {left.en}", f"{facts.zh}{left.zh}")
    return [Exchange(asked, has, Both(str(result), str(result)))]


def _run(numbers: list[int], draw: random.Random) -> Both:
    return Both(", ".join(map(str, numbers)), "、".join(map(str, numbers)))


def counting(draw: random.Random) -> list[Exchange]:
    """Counting up to any number up to 120, from any number, backwards and in steps; in digits or in words."""
    kind = draw.choices(
        ["up", "from", "down", "steps", "words", "next", "before", "between"], [30, 18, 12, 10, 12, 8, 5, 5]
    )[0]
    if kind == "up":
        n = draw.randint(2, 30) if draw.random() < 0.7 else draw.randint(31, 120)
        asked = both(
            draw,
            "Count to {n}. / Count from 1 to {n}. / Can you count to {n}? / Please count up to {n}. / "
            "Say the numbers from 1 to {n}. / Write the numbers up to {n}.",
            "[从1|]数到{n}。 / 从1数到{n}。 / 你能数到{n}吗？ / 请[你|]数到{n}。 / 写出1到{n}的数字。 / "
            "数一数，从1到{n}。",
            n=n,
        )
        shown = _run(list(range(1, n + 1)), draw)
        return [Exchange(asked, Both(f"{shown.en}.", f"{shown.zh}。"))]
    if kind == "from":
        a = draw.randint(2, 100)
        b = a + draw.randint(3, 15)
        asked = both(
            draw,
            "Count from {a} to {b}. / Say the numbers from {a} to {b}. / Start at {a} and count to {b}.",
            "从{a}数到{b}。 / 写出{a}到{b}的数字。 / 请从{a}开始，数到{b}。",
            a=a,
            b=b,
        )
        shown = _run(list(range(a, b + 1)), draw)
        return [Exchange(asked, Both(f"{shown.en}.", f"{shown.zh}。"))]
    if kind == "down":
        a = draw.randint(3, 25)
        b = 1 if draw.random() < 0.7 else draw.randint(1, a - 2)
        asked = both(
            draw,
            "Count backwards from {a} to {b}. / Count down from {a} to {b}. / Count from {a} down to {b}.",
            "从{a}倒数到{b}。 / 倒着数，从{a}到{b}。 / 从{a}往回数到{b}。",
            a=a,
            b=b,
        )
        shown = _run(list(range(a, b - 1, -1)), draw)
        return [Exchange(asked, Both(f"{shown.en}.", f"{shown.zh}。"))]
    if kind == "steps":
        step = draw.choice([2, 2, 5, 5, 10, 10, 3, 4])
        n = step * draw.randint(4, 12)
        asked = both(
            draw,
            "Count by {s}s to {n}. / Count to {n} in steps of {s}. / Count up to {n} by {s}s.",
            "{s}个{s}个地数到{n}。 / 每次加{s}，数到{n}。 / 每隔{s}数一个数，数到{n}。",
            s=step,
            n=n,
        )
        shown = _run(list(range(step, n + 1, step)), draw)
        return [Exchange(asked, Both(f"{shown.en}.", f"{shown.zh}。"))]
    if kind == "words":
        n = draw.randint(2, 20)
        asked = both(
            draw,
            "Count to {w} in words. / Count from one to {w}. / Count to {n} and write the numbers as words.",
            "用汉字从一数到{w}。 / 从一数到{w}。 / 用汉字写出一到{w}。",
            w=number(n),
            n=n,
        )
        en = ", ".join(number_en(i) for i in range(1, n + 1))
        zh = "、".join(number_zh(i) for i in range(1, n + 1))
        return [Exchange(asked, Both(f"{en[0].upper()}{en[1:]}.", f"{zh}。"))]
    a = draw.randint(1, 119)
    if kind == "next":
        asked = both(
            draw,
            "What comes after {a}? / What is the next number after {a}? / Which number follows {a}?",
            "{a}后面是几？ / {a}的下一个数是多少？ / {a}的后面是哪个数？",
            a=a,
        )
        return [Exchange(asked, Both(f"After {a} comes {a + 1}.", f"{a}后面是{a + 1}。"), Both(str(a + 1), str(a + 1)))]
    if kind == "before":
        asked = both(
            draw,
            "What comes before {a}? / Which number is one less than {a}?",
            "{a}前面是几？ / 比{a}少1的数是多少？",
            a=a,
        )
        return [
            Exchange(asked, Both(f"Before {a} comes {a - 1}.", f"{a}前面是{a - 1}。"), Both(str(a - 1), str(a - 1)))
        ]
    asked = both(draw, "Which number is between {a} and {b}?", "{a}和{b}中间是几？", a=a, b=a + 2)
    between = Both(f"{a + 1} is between {a} and {a + 2}.", f"{a}和{a + 2}中间是{a + 1}。")
    return [Exchange(asked, between, Both(str(a + 1), str(a + 1)))]


def comparison(draw: random.Random) -> list[Exchange]:
    """Which number is larger; even or odd; smallest and largest of a list; numbers in order; yes and no of sums."""
    kind = draw.choice(["larger", "larger", "smaller", "even", "order", "extreme", "yes", "yes", "double"])
    a, b = draw.sample(range(1, 101), 2)
    if kind in ("larger", "smaller"):
        found = max(a, b) if kind == "larger" else min(a, b)
        other = a + b - found
        asked = both(
            draw,
            "Which is {w}, {a} or {b}? / Which number is {w}: {a} or {b}? / {a} or {b}, which one is {w}?",
            "{a}和{b}哪个{w}？ / {a}和{b}，哪个数更{w}？ / 哪个数比较{w}，{a}还是{b}？",
            w=Both("[larger|bigger]" if kind == "larger" else "smaller", "大" if kind == "larger" else "小"),
            a=a,
            b=b,
        )
        asked = Both(asked.en.replace("[larger|bigger]", draw.choice(["larger", "bigger"])), asked.zh)
        answer = Both(
            f"{found} is {'larger' if kind == 'larger' else 'smaller'} than {other}.",
            f"{found}比{other}{'大' if kind == 'larger' else '小'}。",
        )
        return [Exchange(asked, answer, Both(str(found), str(found)))]
    if kind == "even":
        is_even = a % 2 == 0
        asked = both(
            draw,
            "Is {a} even or odd? / Is {a} an even number? / Is {a} an odd number?",
            "{a}是单数还是双数？ / {a}是双数吗？ / {a}是单数吗？",
            a=a,
        )
        answers = {}
        for language, text in (("en", asked.en), ("zh", asked.zh)):
            says = Both(f"{a} is an {'even' if is_even else 'odd'} number.", f"{a}是{'双' if is_even else '单'}数。")[
                language
            ]
            asks_even = "an even" in text or "双数吗" in text
            asks_odd = "an odd" in text or "单数吗" in text
            if (asks_even or asks_odd) and " or " not in text and "还是" not in text:
                yes = asks_even == is_even
                says = {"en": "Yes, " if yes else "No, ", "zh": "是的，" if yes else "不是，"}[language] + says
            answers[language] = says
        return [Exchange(asked, Both(answers["en"], answers["zh"]))]
    numbers = draw.sample(range(1, 100), draw.randint(3, 5))
    if kind == "order":
        up = draw.random() < 0.6
        shown = _run(numbers, draw)
        asked = both(
            draw,
            "Sort these numbers from {w}: {l}. / Put these numbers in order from {w}: {l}. / Order {l} from {w}.",
            "把这些数{w}排列：{l}。 / 请{w}排一排：{l}。 / 将{l}{w}排列。",
            w=Both("smallest to largest" if up else "largest to smallest", "从小到大" if up else "从大到小"),
            l=shown,
        )
        ordered = _run(sorted(numbers, reverse=not up), draw)
        return [Exchange(asked, Both(f"{ordered.en}.", f"{ordered.zh}。"), ordered)]
    if kind == "extreme":
        is_max = draw.random() < 0.5
        found = max(numbers) if is_max else min(numbers)
        asked = both(
            draw,
            "Which is the {w} number: {l}? / What is the {w} of these numbers: {l}?",
            "哪个数最{w}：{l}？ / {l}，这些数里最{w}的是哪个？",
            w=Both("largest" if is_max else "smallest", "大" if is_max else "小"),
            l=_run(numbers, draw),
        )
        answer = Both(
            f"The {'largest' if is_max else 'smallest'} number is {found}.",
            f"最{'大' if is_max else '小'}的数是{found}。",
        )
        return [Exchange(asked, answer, Both(str(found), str(found)))]
    if kind == "double":
        n = draw.randint(1, 25)
        if draw.random() < 0.5:
            asked = both(draw, "What is double {n}? / What is twice {n}?", "{n}的两倍是多少？ / {n}的2倍是几？", n=n)
            return [
                Exchange(asked, Both(f"Double {n} is {2 * n}.", f"{n}的两倍是{2 * n}。"), Both(str(2 * n), str(2 * n)))
            ]
        asked = both(
            draw, "What is half of {n}? / What is one half of {n}?", "{n}的一半是多少？ / {n}的一半是几？", n=2 * n
        )
        return [Exchange(asked, Both(f"Half of {2 * n} is {n}.", f"{2 * n}的一半是{n}。"), Both(str(n), str(n)))]
    if draw.random() < 0.5:
        yes = a > b
        asked = both(
            draw, "Is {a} larger than {b}? / Is {a} more than {b}?", "{a}比{b}大吗？ / {a}大于{b}吗？", a=a, b=b
        )
        word, zh = ("larger", "大") if yes else ("smaller", "小")
        answer = Both(
            f"{'Yes' if yes else 'No'}, {a} is {word} than {b}.", f"{'是的' if yes else '不'}，{a}比{b}{zh}。"
        )
        return [Exchange(asked, answer, Both("yes" if yes else "no", "是" if yes else "不"))]
    a, b, sign, result = easy_sum(draw, 20)
    said = result if draw.random() < 0.5 else max(0, result + draw.choice([-2, -1, 1, 2, 3]))
    asked = both(
        draw,
        "Is {a} {s} {b} equal to {c}? / Is it right that {a} {s} {b} = {c}? / Is {a} {w} {b} {c}?",
        "{a}{s}{b}等于{c}吗？ / {a}{s}{b}={c}，对吗？ / {a}{w}{b}是{c}吗？",
        a=a,
        b=b,
        c=said,
        s=sign,
        w=Both("plus" if sign == "+" else "minus", "加" if sign == "+" else "减"),
    )
    right = _sum_answer(draw, a, b, sign, result)
    yes = said == result
    answer = Both(f"{'Yes' if yes else 'No'}, {right.en}", f"{'对' if yes else '不对'}，{right.zh}")
    return [Exchange(asked, answer, Both("yes" if yes else "no", "对" if yes else "不对"))]


def spelling_words() -> list[Both]:
    """Words that are spelled: nouns of one word in English."""
    nouns = [animal.noun for animal in animals()] + [thing.noun for thing in things()]
    return [Both(str(found.en), str(found.zh)) for found in nouns if found.en.isalpha()]


def spelling(draw: random.Random) -> list[Exchange]:
    """An English word letter by letter; a Chinese word character by character; letters and characters counted."""
    name = person(draw).name
    word = draw.choice(spelling_words()) if draw.random() < 0.65 else name
    english = word.en.split()[-1]
    kind = draw.choice(["spell", "spell", "spell", "count", "first", "last", "backwards"])
    letters = "-".join(english.lower() if english != name.en.split()[-1] else english)
    shown = {"w": Both(english, word.zh), "e": english}
    if kind == "spell":
        asked = both(
            draw,
            'Spell "{w}". / Spell the word {w}. / How do you spell {w}? / How is {w} spelled? / Please spell {w}. / '
            "Can you spell {w} for me?",
            "“{w}”有哪几个字？ / 把“{w}”一个字一个字地写出来。 / “{w}”怎么写？ / 一个字一个字地念“{w}”。 / "
            "英文单词{e}怎么拼写？ / {e}怎么拼？ / 请拼写{e}。",
            **shown,
        )
        zh = f"{english}：{letters}。" if english in asked.zh else f"“{word.zh}”：{'、'.join(word.zh)}。"
        en = draw.choice([f"{letters}.", f"{english} is spelled {letters}."])
        return [Exchange(asked, Both(en, zh))]
    if kind == "count":
        asked = both(
            draw,
            'How many letters are in "{w}"? / How many letters does the word {w} have?',
            "“{w}”有几个字？ / “{w}”这个词是几个字？",
            **shown,
        )
        n, m = len(english), len(word.zh)
        en = f'"{english}" has {number_en(n)} letter{"s" if n > 1 else ""}: {letters}.'
        zh = f"“{word.zh}”有{count_zh(m)}个字：{'、'.join(word.zh)}。"
        return [Exchange(asked, Both(en, zh), Both(str(n), str(m)))]
    if kind in ("first", "last"):
        position = 0 if kind == "first" else -1
        asked = both(
            draw,
            f'What is the {kind} letter of "{{w}}"? / Which letter is the {kind} one in {{w}}?',
            f"“{{w}}”的{'第一个' if kind == 'first' else '最后一个'}字是什么？",
            **shown,
        )
        en = f'The {kind} letter of "{english}" is "{english[position]}".'
        zh = f"“{word.zh}”的{'第一个' if kind == 'first' else '最后一个'}字是“{word.zh[position]}”。"
        return [Exchange(asked, Both(en, zh), Both(english[position], word.zh[position]))]
    asked = both(draw, 'Spell "{w}" backwards. / Write {w} backwards.', "把“{w}”倒过来念。 / 倒着写“{w}”。", **shown)
    return [Exchange(asked, Both(f"{'-'.join(reversed(english.lower()))}.", f"{''.join(reversed(word.zh))}。"))]
