"""Stories that no plot fixes: a hero sets out for somewhere, and small scenes follow each other in any order.

Knows words only; stories.py gives it the hero.
"""

from __future__ import annotations

import random
from typing import Any

from bilingual.language import Both, Exchange, both, count_zh, number_en
from bilingual.words import Person, animals, colours, noun, person, things

GOALS = [
    Both("the sea", "大海边"),
    Both("the highest mountain", "最高的山上"),
    Both("the big city", "大城市"),
    Both("grandmother's house", "奶奶家"),
    Both("the end of the rainbow", "彩虹的尽头"),
    Both("the market", "集市"),
    Both("the old castle", "古老的城堡"),
    Both("the small island", "小岛上"),
    Both("the great library", "大图书馆"),
    Both("the lighthouse", "灯塔"),
    Both("the valley of flowers", "花谷"),
    Both("the circus", "马戏团"),
]
SETTING_OUT = (
    "One day {H} set out for {goal}. / Early in the morning {H} packed a bag and set out for {goal}. / "
    '"Today I will go to {goal}," said {H} and left the house. / '
    "{H} had always wanted to see {goal}, and one day {he} set out.",
    "一天，{H}出发去{goal}。 / 一大早，{H}背上包，出发去{goal}。 / “今天我要去{goal}。”{H}说着出了门。 / "
    "{H}一直想去{goal}看看，有一天终于出发了。",
)
ARRIVING = (
    "In the evening {H} came to {goal} and was very happy. / Tired but happy, {H} reached {goal} at last. / "
    'And then {he} was there. "How beautiful it is here," said {H}. / When the stars came out, {H} was at {goal}.',
    "傍晚，{H}来到了{goal}，高兴极了。 / {H}又累又开心，终于到了{goal}。 / 终于到了。“这里真美啊！”{H}说。 / "
    "星星出来的时候，{H}已经在{goal}了。",
)
FIRST = Both("First", "一开始")
LATER = [
    Both("Then", "接着"),
    Both("After that", "后来"),
    Both("A little later", "过了一会儿"),
    Both("On the way", "路上"),
    Both("At noon", "中午"),
    Both("Soon", "不久"),
    Both("In the afternoon", "下午"),
]
SPOTS = [
    Both("under the old tree", "老树底下"),
    Both("behind the waterfall", "瀑布后面"),
    Both("under the bridge", "桥底下"),
    Both("behind the mill", "磨坊后面"),
    Both("in the hollow stone", "空心的石头里"),
    Both("beside the well", "井旁边"),
]
SHELTERS = [
    Both("an old barn", "旧谷仓"),
    Both("a cave", "山洞"),
    Both("a bakery", "面包店"),
    Both("a small tent", "小帐篷"),
    Both("a station", "车站"),
    Both("a wooden hut", "小木屋"),
]
ADVICE = [
    Both("Go slowly", "慢慢走"),
    Both("Do not be afraid", "不要害怕"),
    Both("Follow the river", "沿着河走"),
    Both("Look up at the stars", "抬头看星星"),
    Both("Ask when you do not know the way", "不认识路就多问问"),
    Both("Rest when you are tired", "累了就歇一歇"),
]
ACTIONS = [
    Both("singing", "唱歌"),
    Both("dancing", "跳舞"),
    Both("crying", "哭"),
    Both("sleeping", "睡觉"),
    Both("eating", "吃东西"),
    Both("reading a book", "看书"),
    Both("painting a fence", "刷篱笆"),
    Both("looking at the clouds", "看云"),
    Both("building a house", "盖房子"),
]
# A scene, a question about it, the answer, and the answer in a word or two. {s} begins it.
SCENES = [
    (
        ("{s} {he} met {x.a} that was {act}.", "{s}，{he}遇见一{x.c}{x}正在{act}。"),
        ("What was the {x} doing?", "{x}在做什么？"),
        ("The {x} was {act}.", "{x}在{act}。"),
        ("{act}", "{act}"),
    ),
    (
        ("{s} {he} met {x.a} that was looking for a {c} {t}.", "{s}，{he}遇见一{x.c}{x}，它在找一{t.c}{c}的{t}。"),
        ("What was the {x} looking for?", "{x}在找什么？"),
        ("The {x} was looking for a {c} {t}.", "{x}在找一{t.c}{c}的{t}。"),
        ("a {c} {t}", "{c}的{t}"),
    ),
    (
        ("{s} {he} found {n} coins on the road.", "{s}，{he}在路上捡到{m}枚硬币。"),
        ("How many coins did {H} find?", "{H}捡到几枚硬币？"),
        ("{H} found {n} coins.", "{H}捡到{m}枚硬币。"),
        ("{n}", "{m}枚"),
    ),
    (
        ("{s} {he} helped {x.a} to carry {t.a}.", "{s}，{he}帮一{x.c}{x}搬一{t.c}{t}。"),
        ("Whom did {H} help?", "{H}帮助了谁？"),
        ("{H} helped {x.a}.", "{H}帮助了一{x.c}{x}。"),
        ("{x.a}", "{x}"),
    ),
    (
        ("{s} {he} ate {n} {f.plural} under a big tree.", "{s}，{he}在一棵大树下吃了{m}{f.c}{f}。"),
        ("What did {H} eat?", "{H}吃了什么？"),
        ("{H} ate {n} {f.plural}.", "{H}吃了{m}{f.c}{f}。"),
        ("{n} {f.plural}", "{m}{f.c}{f}"),
    ),
    (
        ("{s} {he} gave {his} {t} to {x.a} that was sad.", "{s}，{he}把自己的{t}送给了一{x.c}难过的{x}。"),
        ("What did {H} give away?", "{H}把什么送人了？"),
        ("{H} gave away {his} {t}.", "{H}把自己的{t}送人了。"),
        ("{his} {t}", "{t}"),
    ),
    (
        ("{s} {he} saw {n} {x.plural} in a field.", "{s}，{he}在田野里看见{m}{x.c}{x}。"),
        ("How many {x.plural} did {H} see?", "{H}看见几{x.c}{x}？"),
        ("{H} saw {n} {x.plural}.", "{H}看见{m}{x.c}{x}。"),
        ("{n}", "{m}{x.c}"),
    ),
    (
        (
            "{s} {x.a} told {him} a secret: there was {t.a} {spot}.",
            "{s}，一{x.c}{x}告诉{he}一个秘密：{spot}有一{t.c}{t}。",
        ),
        ("What was the secret?", "那个秘密是什么？"),
        ("The secret was that there was {t.a} {spot}.", "秘密是{spot}有一{t.c}{t}。"),
        ("{t.a} {spot}", "{spot}有一{t.c}{t}"),
    ),
    (
        ("{s} it began to rain, and {he} waited in {shelter}.", "{s}，下起雨来了，{he}躲进了{shelter}。"),
        ("Where did {H} wait for the rain to stop?", "{H}在哪里躲雨？"),
        ("{H} waited in {shelter}.", "{H}在{shelter}躲雨。"),
        ("in {shelter}", "{shelter}"),
    ),
    (
        ("{s} {he} bought a {c} {t} for {n} coins.", "{s}，{he}花{m}枚硬币买了一{t.c}{c}的{t}。"),
        ("How many coins did the {t} cost?", "{t}花了几枚硬币？"),
        ("The {t} cost {n} coins.", "{t}花了{m}枚硬币。"),
        ("{n} coins", "{m}枚硬币"),
    ),
    (
        (
            '{s} {x.a} asked {him}, "How much is {a} plus {b}?" "{sum}," said {H}.',
            "{s}，一{x.c}{x}问{he}：“{a}加{b}等于几？”“{sum}。”{H}回答。",
        ),
        ("Which number did {H} say?", "{H}说的是哪个数？"),
        ("{H} said {sum}.", "{H}说的是{sum}。"),
        ("{sum}", "{sum}"),
    ),
    (
        ("{s} {he} sang a song with {P}.", "{s}，{he}和{P}一起唱了一首歌。"),
        ("With whom did {H} sing?", "{H}和谁一起唱歌？"),
        ("{H} sang with {P}.", "{H}和{P}一起唱歌。"),
        ("{P}", "{P}"),
    ),
    (
        ("{s} {he} crossed the river on the back of {big.a}.", "{s}，{he}骑在一{big.c}{big}背上过了河。"),
        ("How did {H} cross the river?", "{H}是怎么过河的？"),
        ("{H} crossed the river on the back of {big.a}.", "{H}骑在一{big.c}{big}背上过了河。"),
        ("on the back of {big.a}", "骑着{big}"),
    ),
    (
        ("{s} {he} painted {t.a} {c} for {P}.", "{s}，{he}帮{P}把一{t.c}{t}涂成了{c}。"),
        ("What colour did {H} paint the {t}?", "{H}把{t}涂成了什么颜色？"),
        ("{H} painted the {t} {c}.", "{H}把{t}涂成了{c}。"),
        ("{c}", "{c}"),
    ),
    (
        ('{s} {he} met {x.a}. "{advice}," it said.', "{s}，{he}遇见一{x.c}{x}。“{advice}。”它说。"),
        ("What did the {x} say?", "{x}说了什么？"),
        ('The {x} said, "{advice}."', "{x}说：“{advice}。”"),
        ("{advice}", "{advice}"),
    ),
    (
        ("{s} {he} fell asleep in the grass and dreamed of {x.plural}.", "{s}，{he}在草地上睡着了，梦见了{x}。"),
        ("What did {H} dream of?", "{H}梦见了什么？"),
        ("{H} dreamed of {x.plural}.", "{H}梦见了{x}。"),
        ("{x.plural}", "{x}"),
    ),
    (
        ("{s} {he} wrote a letter to {P}.", "{s}，{he}给{P}写了一封信。"),
        ("To whom did {H} write a letter?", "{H}给谁写了信？"),
        ("{H} wrote a letter to {P}.", "{H}给{P}写了一封信。"),
        ("{P}", "{P}"),
    ),
    (
        ("{s} {he} played with {x.a} until both were tired.", "{s}，{he}和一{x.c}{x}玩，玩到两个都累了。"),
        ("With whom did {H} play?", "{H}和谁一起玩？"),
        ("{H} played with {x.a}.", "{H}和一{x.c}{x}一起玩。"),
        ("{x.a}", "{x}"),
    ),
]
HORSEBACK = ("horse", "donkey", "elephant", "camel", "cow", "deer", "turtle", "hippo", "zebra", "bear")


def journey(draw: random.Random, hero: Person) -> tuple[list[Both], list[Exchange]]:
    """The sentences of a journey behind its opening, and what can be asked about it."""
    goal = draw.choice(GOALS)
    known: dict[str, Any] = {"H": hero.name, "he": hero.he, "him": hero.him, "his": hero.his, "goal": goal}
    sentences = [both(draw, *SETTING_OUT, **known)]
    questions = [
        Exchange(
            both(draw, "Where did {H} go? / Where did {H} want to go?", "{H}去了哪里？ / {H}想去哪里？", **known),
            both(draw, "{H} went to {goal}.", "{H}去了{goal}。", **known),
            goal,
        )
    ]
    scenes = draw.sample(SCENES, draw.randint(3, 5))
    starts = [FIRST, *draw.sample(LATER, len(scenes) - 1)]
    met: set[str] = set()
    for start, (told, asked, answer, short) in zip(starts, scenes):
        animal = draw.choice([a.noun for a in animals() if str(a.noun.en) not in met])
        met.add(str(animal.en))
        n, a, b = draw.randint(2, 9), draw.randint(1, 10), draw.randint(1, 10)
        slots = {
            **known,
            "s": start,
            "x": animal,
            "big": draw.choice([found.noun for found in animals() if found.noun.en in HORSEBACK]),
            "t": draw.choice(PORTABLE),
            "f": draw.choice([thing.noun for thing in things() if thing.category.en == "fruit"]),
            "c": draw.choice(colours()),
            "P": person(draw, (hero,)).name,
            "n": number_en(n),
            "m": count_zh(n),
            "a": a,
            "b": b,
            "sum": a + b,
            "act": draw.choice(ACTIONS),
            "spot": draw.choice(SPOTS),
            "shelter": draw.choice(SHELTERS),
            "advice": draw.choice(ADVICE),
        }
        sentences.append(both(draw, *told, **slots))
        plain = Both(short[0].format(**_in(slots, "en")), short[1].format(**_in(slots, "zh")))
        questions.append(Exchange(both(draw, *asked, **slots), both(draw, *answer, **slots), plain))
    sentences.append(both(draw, *ARRIVING, **known))
    return sentences, questions


def _in(slots: dict[str, Any], language: str) -> dict[str, Any]:
    return {name: value[language] if hasattr(value, "en") else value for name, value in slots.items()}


PORTABLE = tuple(
    noun(*words)
    for words in [
        ("kite", "风筝", "只"),
        ("ball", "球", "个"),
        ("lamp", "灯", "盏"),
        ("basket", "篮子", "个"),
        ("drum", "鼓", "面"),
        ("bell", "铃铛", "个"),
        ("book", "书", "本"),
        ("chair", "椅子", "把"),
        ("box/boxes", "箱子", "个"),
        ("hat", "帽子", "顶"),
        ("cup", "杯子", "个"),
        ("key", "钥匙", "把"),
        ("mirror", "镜子", "面"),
        ("umbrella", "雨伞", "把"),
        ("ladder", "梯子", "架"),
        ("pot", "锅", "口"),
        ("flute", "笛子", "支"),
        ("blanket", "毯子", "条"),
        ("map", "地图", "张"),
        ("wheel", "轮子", "个"),
        ("stone", "石头", "块"),
        ("scarf/scarves", "围巾", "条"),
        ("clock", "钟", "座"),
        ("doll", "娃娃", "个"),
    ]
)
