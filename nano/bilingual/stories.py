"""Stories without end from the plots of plots.txt: one plan (plot, cast, things, steps) told in both languages.

    PYTHONPATH=nano python -m bilingual.stories [SEED]     prints ten stories

The same alternative of each step is told in both languages, so the two texts say the same; what a story can be asked
about is known from its plan.
"""

from __future__ import annotations

import random
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from bilingual.journeys import journey
from bilingual.language import Both, Exchange, both, choose, mended, punctuated
from bilingual.words import Animal, Person, animal_hero, animals, colours, noun, person

PLOTS = Path(__file__).parent / "plots.txt"


@dataclass(frozen=True)
class Step:
    en: tuple[str, ...]
    zh: tuple[str, ...]
    is_optional: bool


@dataclass(frozen=True)
class Plot:
    name: str
    themes: tuple[Both, ...]
    marks: frozenset[str]
    steps: tuple[Step, ...]
    questions: tuple[tuple[Both, Both, Both], ...]
    moral: Both


@dataclass(frozen=True)
class Story:
    """A told story; `facts` are its plan."""

    text: Both
    plot: Plot
    hero: Person
    hero_kind: Both
    friend: Person
    facts: dict[str, Both]
    questions: list[Exchange] = field(compare=False, default_factory=list)


def _alternatives(line: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in line.split(" / "))


@cache
def plots() -> tuple[Plot, ...]:
    """The plots. Raises ValueError for a step whose languages have not equally many alternatives."""
    found = []
    for block in re.split(r"^## ", PLOTS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        head, *lines = [line for line in block.splitlines() if line.strip()]
        name, themes_en, themes_zh, marks = [cell.strip() for cell in head.split(" | ")]
        themes = tuple(Both(en, zh) for en, zh in zip(themes_en.split("; "), themes_zh.split("; "), strict=True))
        steps, questions, moral = [], [], None
        for first, second in zip(lines[::2], lines[1::2], strict=True):
            if first.startswith("! "):
                moral = Both(first[2:], second.removeprefix("=! "))
            elif first.startswith("? "):
                cells = zip(first[2:].split(" | "), second.removeprefix("=? ").split(" | "), strict=True)
                asked, answer, short = (Both(en.strip(), zh.strip()) for en, zh in cells)
                questions.append((asked, answer, short))
            else:
                is_optional = first.startswith("~")
                en = _alternatives(first.removeprefix("~").removeprefix("* "))
                zh = _alternatives(second.removeprefix("= "))
                if len(en) != len(zh):
                    raise ValueError(
                        f"plots.txt, {name}: {len(en)} English and {len(zh)} Chinese alternatives: {first}"
                    )
                steps.append(Step(en, zh, is_optional))
        assert moral is not None, name
        found.append(Plot(name, themes, frozenset(marks.split()), tuple(steps), tuple(questions), moral))
    return tuple(found)


# en with its preposition for "at", for "to"; the same in Chinese.
PLACES = [
    ("the park", "in the park", "to the park", "公园", "公园里"),
    ("the garden", "in the garden", "to the garden", "花园", "花园里"),
    ("the forest", "in the forest", "to the forest", "森林", "森林里"),
    ("the beach", "on the beach", "to the beach", "沙滩", "沙滩上"),
    ("the lake", "at the lake", "to the lake", "湖边", "湖边"),
    ("the river", "by the river", "to the river", "河边", "河边"),
    ("the meadow", "in the meadow", "to the meadow", "草地", "草地上"),
    ("the hill", "on the hill", "to the hill", "小山", "小山上"),
    ("the village square", "in the village square", "to the village square", "村里的广场", "村里的广场上"),
    ("the schoolyard", "in the schoolyard", "to the schoolyard", "操场", "操场上"),
    ("the playground", "at the playground", "to the playground", "游乐场", "游乐场里"),
    ("the market", "at the market", "to the market", "市场", "市场上"),
    ("the farm", "on the farm", "to the farm", "农场", "农场里"),
    ("the pond", "by the pond", "to the pond", "池塘边", "池塘边"),
    ("the old mill", "at the old mill", "to the old mill", "老磨坊", "老磨坊旁"),
    ("the orchard", "in the orchard", "to the orchard", "果园", "果园里"),
    ("the bamboo grove", "in the bamboo grove", "to the bamboo grove", "竹林", "竹林里"),
    ("the harbour", "at the harbour", "to the harbour", "港口", "港口边"),
    ("the wheat field", "in the wheat field", "to the wheat field", "麦田", "麦田边"),
    ("the big oak", "under the big oak", "to the big oak", "大橡树下", "大橡树下"),
]
TOYS = [
    ("ball", "球", "个"),
    ("drum", "小鼓", "面"),
    ("hat", "帽子", "顶"),
    ("scarf/scarves", "围巾", "条"),
    ("bell", "铃铛", "个"),
    ("lantern", "灯笼", "盏"),
    ("flute", "笛子", "支"),
    ("toy boat", "玩具船", "只"),
    ("toy car", "玩具车", "辆"),
    ("toy train", "玩具火车", "列"),
    ("book", "书", "本"),
    ("umbrella", "雨伞", "把"),
    ("balloon", "气球", "个"),
    ("top", "陀螺", "个"),
    ("marble", "弹珠", "颗"),
    ("basket", "篮子", "个"),
    ("cup", "杯子", "个"),
    ("ribbon", "丝带", "条"),
    ("paper plane", "纸飞机", "架"),
    ("kite", "风筝", "只"),
    ("doll", "娃娃", "个"),
    ("whistle", "哨子", "个"),
    ("stone", "石头", "块"),
    ("pencil", "铅笔", "支"),
    ("box/boxes", "盒子", "个"),
    ("lamp", "小灯", "盏"),
    ("trumpet", "小喇叭", "支"),
    ("blanket", "毯子", "条"),
]
MEALS = [
    ("a bowl of noodles", "一碗面条"),
    ("a plate of dumplings", "一盘饺子"),
    ("a big cake", "一个大蛋糕"),
    ("an apple pie", "一个苹果派"),
    ("some bread and cheese", "一些面包和奶酪"),
    ("a pot of soup", "一锅汤"),
    ("a bag of nuts", "一袋坚果"),
    ("a basket of strawberries", "一篮草莓"),
    ("a bowl of rice", "一碗米饭"),
    ("some honey cookies", "一些蜂蜜饼干"),
    ("a piece of pumpkin pie", "一块南瓜派"),
    ("two pancakes", "两张煎饼"),
    ("a bowl of porridge", "一碗粥"),
    ("some steamed buns", "几个包子"),
    ("a plate of pancakes", "一盘煎饼"),
    ("a chocolate cake", "一个巧克力蛋糕"),
    ("a bunch of grapes", "一串葡萄"),
    ("some sweet potatoes", "几个红薯"),
]
SKILLS = [
    ("ride a bicycle", "骑自行车"),
    ("swim", "游泳"),
    ("whistle", "吹口哨"),
    ("play the flute", "吹笛子"),
    ("skate", "滑冰"),
    ("dance", "跳舞"),
    ("paint", "画画"),
    ("climb trees", "爬树"),
    ("play the drum", "打鼓"),
    ("sing", "唱歌"),
    ("ski", "滑雪"),
    ("cook", "做饭"),
    ("play chess", "下棋"),
    ("play the violin", "拉小提琴"),
    ("bake bread", "烤面包"),
    ("row a boat", "划船"),
    ("skip rope", "跳绳"),
    ("knit", "织毛衣"),
    ("play football", "踢足球"),
    ("make lanterns", "做灯笼"),
]
PLANTS = [
    ("a tall sunflower", "一株高高的向日葵"),
    ("a red rose", "一朵红玫瑰"),
    ("a pumpkin as big as a wheel", "一个像车轮那么大的南瓜"),
    ("a little apple tree", "一棵小苹果树"),
    ("a blue flower", "一朵蓝色的花"),
    ("a long bean plant", "一株长长的豆子"),
    ("a peach tree", "一棵桃树"),
    ("a white lily", "一朵白百合"),
    ("a plant full of tomatoes", "一株挂满西红柿的秧苗"),
    ("a young willow", "一棵小柳树"),
]
ELDERS = [
    ("grandma", "奶奶", "f"),
    ("grandpa", "爷爷", "m"),
    ("mother", "妈妈", "f"),
    ("father", "爸爸", "m"),
    ("aunt", "姑姑", "f"),
    ("uncle", "叔叔", "m"),
    ("big sister", "姐姐", "f"),
    ("big brother", "哥哥", "m"),
]
TRAITS = [
    ("brave", "勇敢的"),
    ("clever", "聪明的"),
    ("kind", "善良的"),
    ("curious", "好奇的"),
    ("shy", "害羞的"),
    ("cheerful", "开朗的"),
    ("quiet", "安静的"),
    ("funny", "有趣的"),
    ("friendly", "友好的"),
    ("lively", "活泼的"),
    ("gentle", "温柔的"),
    ("patient", "有耐心的"),
]
GUESTS = [("squirrel", "松鼠"), ("mouse", "老鼠"), ("chipmunk", "花栗鼠"), ("dormouse", "睡鼠")]
HOMES = [
    ("a small house by the river", "河边的一座小房子"),
    ("a village between two hills", "两座小山之间的村子"),
    ("an old hut at the edge of the forest", "森林边的一间旧木屋"),
    ("a house with a red roof", "一座红屋顶的房子"),
    ("a town by the sea", "海边的小镇"),
    ("a little white house", "一座白色的小房子"),
    ("a quiet valley", "一个安静的山谷"),
    ("a house full of books", "一座满是书的房子"),
]
OPENINGS = Step(
    (
        "Once upon a time there was {Hd}.",
        "Once there lived {Hd}.",
        "In {home} lived {Hd}.",
        "This is the story of {Hd}.",
        "Long ago, {Hd} lived in {home}.",
        "There was once {Hd} who lived in {home}.",
        "Do you know {H}? {H} was {Hd0}.",
        "Far away, in {home}, there lived {Hd}.",
    ),
    (
        "从前，有{Hd}。",
        "以前，有{Hd}。",
        "{home}里住着{Hd}。",
        "这是{H}的故事。{H}是{Hd0}。",
        "很久以前，有{Hd}，住在{home}里。",
        "从前有{Hd}，住在{home}里。",
        "你认识{H}吗？{H}是{Hd0}。",
        "很远很远的地方，在{home}里，住着{Hd}。",
    ),
    False,
)
DETAILS = [
    ("{H} liked {colour} things best.", "{H}最喜欢{colour}的东西。"),
    ("Every morning {he} drank a glass of milk.", "每天早上{he}都要喝一杯牛奶。"),
    ("{He} lived with {his} {elder}.", "{He}和{elder}住在一起。"),
    ("{He} had a big dream and small feet.", "{He}个子小小的，梦想却大大的。"),
    ("In the evening {he} liked to look at the stars.", "晚上{he}喜欢看星星。"),
    ("{He} could laugh louder than anyone else.", "{He}的笑声比谁都响亮。"),
    ("{He} always wore a {colour} scarf.", "{He}总是围着一条{colour}的围巾。"),
    ("{He} knew every stone and every tree around.", "附近的每块石头、每棵树{he}都认识。"),
    ("{He} loved to collect leaves.", "{He}爱收集树叶。"),
    ("{He} sang from morning to night.", "{He}从早到晚都在唱歌。"),
]
WEATHER = [
    ("It was a warm day in {season}, and a light wind was blowing.", "那是{season}里暖和的一天，微风轻轻吹着。"),
    ("The sun was shining, and the birds were singing.", "阳光灿烂，鸟儿在歌唱。"),
    ("It was a quiet {season} day.", "那是{season}里安静的一天。"),
    ("White clouds were moving across the blue sky.", "蓝蓝的天上飘着白云。"),
    ("It was early in the morning, and the grass was still wet.", "清晨，草地还湿漉漉的。"),
]
SEASONS = [("spring", "春天"), ("summer", "夏天"), ("autumn", "秋天")]
ENDINGS = [
    ("And they stayed friends for the rest of their lives.", "他们做了一辈子的好朋友。"),
    ("That night {H} slept very well.", "那天晚上，{H}睡得特别香。"),
    ("{H} was happy, and so was {F}.", "{H}很高兴，{F}也很高兴。"),
    ("What a day that was!", "这真是难忘的一天！"),
    ("And if you listen closely, you can still hear them laugh.", "如果你仔细听，还能听到他们的笑声呢。"),
    ("Then they all went home, tired and happy.", "后来大家都回家了，又累又开心。"),
    ("{H} told {his} {elder} everything in the evening.", "晚上，{H}把这一切都讲给了{elder}听。"),
    ("The end.", "故事讲完了。"),
]
# What no story tells: the answer says so.
UNTOLD = [
    ("How old is {H}?", "{H}几岁了？", "how old {H} is", "{H}几岁"),
    (
        "What did {H} eat for breakfast that day?",
        "{H}那天早饭吃了什么？",
        "what {H} ate for breakfast",
        "{H}早饭吃了什么",
    ),
    ("What is the name of {H}'s teacher?", "{H}的老师叫什么名字？", "the name of {H}'s teacher", "{H}的老师叫什么"),
    ("How much money does {F} have?", "{F}有多少钱？", "how much money {F} has", "{F}有多少钱"),
    ("On which day was {F} born?", "{F}是哪一天出生的？", "when {F} was born", "{F}是哪天出生的"),
    ("What is {H}'s favourite song?", "{H}最喜欢哪首歌？", "{H}'s favourite song", "{H}最喜欢哪首歌"),
    ("How many brothers does {F} have?", "{F}有几个兄弟？", "how many brothers {F} has", "{F}有几个兄弟"),
]
# Not of plots.txt: scenes in any order (journeys.py).
JOURNEY = Plot(
    "journey",
    (Both("a journey", "旅行"), Both("an adventure", "冒险"), Both("a long way", "一段长长的路")),
    frozenset(),
    (),
    (),
    Both("Whoever sets out will see a lot.", "走出去，就能看到很多。"),
)
JOURNEYS = 0.25  # of all stories
HERO_ANIMALS = frozenset(
    [
        "cat",
        "dog",
        "cow",
        "horse",
        "sheep",
        "goat",
        "pig",
        "donkey",
        "rabbit",
        "mouse",
        "hamster",
        "squirrel",
        "hedgehog",
        "fox",
        "wolf",
        "bear",
        "lion",
        "tiger",
        "elephant",
        "giraffe",
        "zebra",
        "monkey",
        "panda",
        "kangaroo",
        "koala",
        "deer",
        "hippo",
        "chicken",
        "duck",
        "goose",
        "owl",
        "parrot",
        "sparrow",
        "pigeon",
        "penguin",
        "frog",
        "turtle",
        "ladybird",
        "bee",
        "ant",
        "snail",
        "crab",
    ]
)


@cache
def hero_animals() -> tuple[Animal, ...]:
    return tuple(animal for animal in animals() if animal.noun.en in HERO_ANIMALS)


def _both(pair: tuple[str, str]) -> Both:
    return Both(*pair)


@dataclass
class Cast:
    """Who and what a story is about. What is given stays; the rest is drawn."""

    hero: Person
    kind: Animal | None
    trait: Both
    friend: Person
    friend_kind: Animal | None
    thing: tuple[str, str, str]
    colour: Both
    place: tuple[str, str, str, str, str]
    meal: Both

    @classmethod
    def drawn(cls, draw: random.Random) -> Cast:
        is_animal = draw.random() < 0.55
        kind = draw.choice(hero_animals()) if is_animal else None
        hero = animal_hero(draw) if is_animal else person(draw)
        friend_is_animal = draw.random() < (0.85 if is_animal else 0.35)
        friend_kind = draw.choice([a for a in hero_animals() if a is not kind]) if friend_is_animal else None
        while True:
            friend = animal_hero(draw) if friend_is_animal else person(draw, (hero,))
            if friend.name.en != hero.name.en and friend.name.zh != hero.name.zh:
                break
        return cls(
            hero,
            kind,
            _both(draw.choice(TRAITS)),
            friend,
            friend_kind,
            draw.choice(TOYS),
            draw.choice(colours()),
            draw.choice(PLACES),
            _both(draw.choice(MEALS)),
        )


def kind_of(who: Person, kind: Animal | None) -> Both:
    """What somebody is: girl, boy, rabbit."""
    if kind is not None:
        return Both(kind.noun.en, kind.noun.zh)
    return Both("girl", "女孩") if who.gender == "f" else Both("boy", "男孩")


def _small(kind: Animal | None, who: Person) -> str:
    """小兔子, 小女孩; 小熊猫 would be another animal, and a 大象 becomes a 小象."""
    name = kind_of(who, kind).zh
    return {"熊猫": "熊猫", "大象": "小象"}.get(name, f"小{name}")


def _slots(cast: Cast, plot: Plot, draw: random.Random) -> dict[str, dict[str, str]]:
    hero, friend = cast.hero, cast.friend
    elder_en, elder_zh, elder_gender = draw.choice(ELDERS)
    toy = noun(*cast.thing)
    place, at, to, place_zh, at_zh = cast.place
    little = draw.random() < 0.6
    size_en = "little " if little else ""
    kind_en = kind_of(hero, cast.kind).en
    counted = "名" if cast.kind is None else cast.kind.noun.zh.c
    counted = "个" if counted == "名" else counted
    zh_kind = _small(cast.kind, hero)
    hero_zh = f"一{counted}{cast.trait.zh}{zh_kind}"
    friend_en = f"{hero.his.en} friend {friend.name.en}"
    if cast.friend_kind is not None:
        friend_en = draw.choice(
            [f"{friend_en} the {cast.friend_kind.noun.en}", f"{friend.name.en} the {cast.friend_kind.noun.en}"]
        )
    if "stranger" in plot.marks:
        friend_en = f"{friend.name.en} the {kind_of(friend, cast.friend_kind).en}"
        if cast.friend_kind is None:
            friend_en = f"a {kind_of(friend, None).en} named {friend.name.en}"
    friend_zh = (
        ("" if "stranger" in plot.marks else "好朋友")
        + (_small(cast.friend_kind, friend) if cast.friend_kind is not None or "stranger" in plot.marks else "")
        + friend.name.zh
    )
    skill = _both(draw.choice(SKILLS))
    plant = _both(draw.choice(PLANTS))
    guest = _both(draw.choice(GUESTS))
    season = _both(draw.choice(SEASONS))
    home = _both(draw.choice(HOMES))
    named = draw.choice([f"named {hero.name.en}", f"called {hero.name.en}"])
    named_zh = draw.choice([f"，名叫{hero.name.zh}", f"，名字叫{hero.name.zh}", f"，叫{hero.name.zh}"])
    en = {
        "H": hero.name.en,
        "Hd": f"a {cast.trait.en} {size_en}{kind_en} {named}",
        "Hd0": f"a {cast.trait.en} {size_en}{kind_en}",
        "he": hero.he.en,
        "him": hero.him.en,
        "his": hero.his.en,
        "himself": f"{hero.him.en}self",
        "F": friend.name.en,
        "pal": friend_en,
        "fhe": friend.he.en,
        "fhim": friend.him.en,
        "fhis": friend.his.en,
        "himself_f": f"{friend.him.en}self",
        "t": toy.en,
        "a_t": f"a {cast.colour.en} {toy.en}",
        "place": place,
        "at": at,
        "to": to,
        "elder": elder_en,
        "elder_cap": elder_en.capitalize(),
        "eshe": "she" if elder_gender == "f" else "he",
        "eher": "her" if elder_gender == "f" else "his",
        "eher_obj": "her" if elder_gender == "f" else "him",
        "a_food": cast.meal.en,
        "skill": skill.en,
        "a_plant": plant.en,
        "guest": guest.en,
        "colour": cast.colour.en,
        "season": season.en,
        "home": home.en,
    }
    zh = {
        "H": hero.name.zh,
        "Hd": hero_zh + named_zh,
        "Hd0": hero_zh,
        "he": hero.he.zh,
        "F": friend.name.zh,
        "pal": friend_zh,
        "fhe": friend.he.zh,
        "t": toy.zh,
        "a_t": f"一{toy.zh.c}{cast.colour.zh}的{toy.zh}",
        "place": place_zh,
        "at": at_zh,
        "to": place_zh,
        "elder": elder_zh,
        "ehe_zh": "她" if elder_gender == "f" else "他",
        "a_food": cast.meal.zh,
        "skill": skill.zh,
        "a_plant": plant.zh,
        "guest": guest.zh,
        "colour": cast.colour.zh,
        "season": season.zh,
        "home": home.zh,
    }
    for slots in (en, zh):
        slots |= {name[:1].upper() + name[1:]: text for name, text in slots.items() if name[:1].islower()}
    return {"en": en, "zh": zh}


def _told(template: str, language: str, slots: dict[str, str], draw: random.Random, introduces: bool) -> str:
    """One sentence or more; if `introduces`, the first mention of the friend describes the friend."""
    template = choose(template, draw)
    if introduces:
        first = re.search(r"\{(pal|F)\}", template)
        if first:
            template = template[: first.start()] + "{PAL}" + template[first.end() :]
    template = template.replace("{pal}", "{F}").replace("{PAL}", "{pal}")
    text = template.format(**slots)
    return mended(text) if language == "en" else text


def any_plot(draw: random.Random) -> Plot:
    """A plot of plots.txt, or a journey."""
    return JOURNEY if draw.random() < JOURNEYS else draw.choice(plots())


def tell(draw: random.Random, cast: Cast | None = None, plot: Plot | None = None) -> Story:
    """A story in both languages, of a given cast and plot or of drawn ones."""
    plot = plot or any_plot(draw)
    cast = cast or Cast.drawn(draw)
    slots = _slots(cast, plot, draw)
    steps = [(en, zh) for en, zh in [_drawn_step(OPENINGS, draw)]]
    if draw.random() < 0.4:
        steps.append(draw.choice(DETAILS))
    if "weather" not in plot.marks and draw.random() < 0.3:
        steps.append(draw.choice(WEATHER))
    for step in plot.steps:
        if not step.is_optional or draw.random() < 0.6:
            steps.append(_drawn_step(step, draw))
    asked: list[Exchange] = []
    if plot is JOURNEY:
        scenes, asked = journey(draw, cast.hero)
        steps += [(scene.en, scene.zh) for scene in scenes]
    if draw.random() < (0.15 if plot is JOURNEY else 0.6):
        steps.append((plot.moral.en, plot.moral.zh))
    if plot is not JOURNEY and draw.random() < 0.35:
        steps.append(draw.choice(ENDINGS))
    texts = {}
    for language, position in (("en", 0), ("zh", 1)):
        told, introduces = [], True
        for step in steps:
            told.append(_told(step[position], language, slots[language], draw, introduces))
            introduces = introduces and not re.search(r"\{(pal|F)\}", step[position])
        joint = " " if language == "en" else ""
        paragraphs = draw.random() < 0.25
        texts[language] = ("\n" if paragraphs else joint).join(told)
    facts = {
        "thing": Both(slots["en"]["t"], slots["zh"]["t"]),
        "colour": cast.colour,
        "place": Both(cast.place[0], cast.place[3]),
        "trait": cast.trait,
    }
    story = Story(
        Both(texts["en"], texts["zh"]), plot, cast.hero, kind_of(cast.hero, cast.kind), cast.friend, facts, []
    )
    story.questions.extend(asked)
    story.questions.extend(_questions(story, cast, slots, draw))
    return story


def _drawn_step(step: Step, draw: random.Random) -> tuple[str, str]:
    i = draw.randrange(len(step.en))
    return step.en[i], step.zh[i]


def _questions(story: Story, cast: Cast, slots: dict[str, dict[str, str]], draw: random.Random) -> list[Exchange]:
    """What the story answers, and one thing that it does not tell."""

    def exchange(asked: Both, answer: Both, short: Both | None) -> Exchange:
        def filled(text: Both) -> Both:
            return Both(mended(text.en.format(**slots["en"])), text.zh.format(**slots["zh"]))

        plain = Both(short.en.format(**slots["en"]), short.zh.format(**slots["zh"])) if short else None
        return Exchange(filled(asked), filled(answer), plain)

    kind = story.hero_kind
    found = [exchange(*question) for question in story.plot.questions]
    found.append(
        exchange(
            Both("Who is the story about?", "这个故事讲的是谁？"),
            Both("The story is about {H}.", "这个故事讲的是{H}。"),
            Both("{H}", "{H}"),
        )
    )
    is_a = Both(f"{{H}} is a {kind.en}.", f"{{H}}是{_counted(cast)}{_small(cast.kind, cast.hero)}。")
    if cast.kind is not None:
        found.append(
            exchange(Both("What kind of animal is {H}?", "{H}是什么动物？"), is_a, Both(f"a {kind.en}", f"{kind.zh}"))
        )
        other = draw.choice([a for a in hero_animals() if a.noun.en != kind.en])
        asked = Both(f"Is {{H}} a {other.noun.en}?", f"{{H}}是{other.noun.zh}吗？")
        answer = Both(
            f"No, {{H}} is not a {other.noun.en}. {is_a.en}", f"不是，{{H}}不是{other.noun.zh}，是{kind.zh}。"
        )
        found.append(exchange(asked, answer, Both("no", "不是")))
        found.append(
            exchange(
                Both(f"Is {{H}} a {kind.en}?", f"{{H}}是{kind.zh}吗？"),
                Both(f"Yes, {{H}} is a {kind.en}.", f"是的，{{H}}是{kind.zh}。"),
                Both("yes", "是"),
            )
        )
    if "{a_t}" in _all_steps(story.plot) and f"{cast.colour.en} {slots['en']['t']}" in story.text.en:
        found.append(
            exchange(
                Both("What colour was the {t}?", "{t}是什么颜色的？"),
                Both("The {t} was {colour}.", "{t}是{colour}的。"),
                Both("{colour}", "{colour}"),
            )
        )
        wrong = draw.choice([colour for colour in colours() if colour != cast.colour])
        found.append(
            exchange(
                Both(f"Was the {{t}} {wrong.en}?", f"{{t}}是{wrong.zh}的吗？"),
                Both(
                    f"No, the {{t}} was not {wrong.en}. It was {{colour}}.",
                    f"不是，{{t}}不是{wrong.zh}的，是{{colour}}的。",
                ),
                Both("no", "不是"),
            )
        )
    untold = [row for row in UNTOLD if story.plot is not JOURNEY or "{F}" not in row[0]]
    asked_en, asked_zh, what_en, what_zh = draw.choice(untold)
    says_not = both(
        draw,
        f"The story does not say {what_en}. / I do not know. The story does not tell {what_en}.",
        f"故事里没有说{what_zh}。 / 不知道，故事没有讲{what_zh}。",
        H="{H}",
        F="{F}",
    )
    found.append(exchange(Both(asked_en, asked_zh), says_not, None))
    return found


def _counted(cast: Cast) -> str:
    return "一个" if cast.kind is None else f"一{cast.kind.noun.zh.c}"


@cache
def _all_steps(plot: Plot) -> str:
    return " ".join(" ".join(step.en) for step in plot.steps)


# How one asks for a story: with what is asked for, in both languages. {k} kind of hero, {n} name, {t} theme, {o} thing.
PLAIN = (
    "[Tell me|Please tell me|Can you tell me|Could you tell me] a [|short |little |nice |new |bedtime ]story / "
    "I want to hear a story / "
    "Write a [|short |little ]story / Do you know a [|good |nice ]story / A story, please / "
    "Make up a story for [me|my children] / "
    "[Read|Tell] me something before I go to sleep / Entertain me with a story / I would like a story",
    "[给我|请给我|能给我|可以给我]讲[个|一个][|小|短|新|好听的|睡前]故事[|吧|吗] / 我想听[个|一个]故事 / "
    "写一个[|短|小]故事 / 讲个故事[吧|听听] / "
    "来一个[小|好听的|]故事 / 编一个故事[给我听|吧|] / 你会讲故事吗，讲一个吧",
)
WITH_KIND = (
    "[Tell me|Please tell me|Write|Make up] a [|short |little ]story about {k.a} / "
    "I want to hear a story about {k.a} / "
    "A story about {k.a}, please / Do you know a story about {k.a} / [Can|Could] you tell a story with {k.a} in it / "
    "My child loves {k.plural}. Tell a story about one",
    "[给我|请给我]讲[个|一个][关于|]{k}的故事[|吧] / 我想听{k}的故事 / 写一个{k}的[|小]故事 / 编个{k}的故事 / "
    "有没有{k}的故事 / "
    "我家孩子喜欢{k}，讲一个{k}的故事吧",
)
WITH_NAME = (
    "[Tell me|Write|Make up] a [|short ]story about {a_kn} / I want a story about {a_kn} / Tell me about {a_kn} / "
    "The hero of the story should be {a_kn}",
    "讲[个|一个][关于|]{kn}的故事[|吧] / 我想听{kn}的故事 / 写一个故事，主角是{kn} / 编个{kn}的故事[吧|]",
)
WITH_THEME = (
    "[Tell me|Write|Make up|I want to hear] a [|short |nice ]story about {t} / The story should be about {t} / "
    "Do you know a story about {t}",
    "[给我讲|讲|编|写][个|一个]关于{t}的故事[|吧] / 我想听关于{t}的故事 / 故事的主题是{t} / 有没有关于{t}的故事",
)
WITH_THING = (
    "[Tell me|Write|Make up] a [|short ]story with {o} in it / I want a story in which there is {o} / "
    "Tell a story about {k.a} and {o}",
    "讲[个|一个]故事，里面要有{o}[|吧] / 我想听一个有{o}的故事 / 讲个{k}和{o}的故事",
)


def asked_for(draw: random.Random) -> tuple[Both, Story]:
    """A request for a story, and a story that keeps to it."""
    cast = Cast.drawn(draw)
    plot = any_plot(draw)
    form = draw.random()
    kind = kind_of(cast.hero, cast.kind)
    slots: dict[str, Any] = {
        "k": cast.kind.noun if cast.kind is not None else noun(kind.en, kind.zh, "个"),
        "a_kn": Both(
            draw.choice(
                [f"a {kind.en} named {cast.hero.name.en}", f"a {cast.trait.en} {kind.en} named {cast.hero.name.en}"]
            ),
            "",
        ),
        "kn": Both(
            "",
            draw.choice(
                [
                    f"{_small(cast.kind, cast.hero)}{cast.hero.name.zh}",
                    f"{_counted(cast)}叫{cast.hero.name.zh}的{_small(cast.kind, cast.hero)}",
                ]
            ),
        ),
        "t": draw.choice(plot.themes),
    }
    if form < 0.25:
        templates = PLAIN
    elif form < 0.5:
        templates = WITH_KIND
        if cast.kind is None:  # nobody likes girls as one likes foxes
            templates = (WITH_KIND[0].rpartition(" / ")[0], WITH_KIND[1].rpartition(" / ")[0])
    elif form < 0.72:
        templates = WITH_NAME
    elif form < 0.88 or "thing" not in plot.marks:
        templates = WITH_THEME
    else:
        templates = WITH_THING
    toy = noun(*cast.thing)
    thing = Both(mended(f"x a {cast.colour.en} {toy.en}")[2:], f"{cast.colour.zh}的{toy.zh}")
    asked = punctuated(both(draw, *templates, **slots, o=thing), draw)
    while True:
        story = tell(draw, cast, plot)
        if templates is not WITH_THING or thing.en in story.text.en:
            return asked, story
        if "{a_t}" not in _all_steps(plot):
            plot = draw.choice([p for p in plots() if "{a_t}" in _all_steps(p)])


def main() -> None:
    draw = random.Random(sys.argv[1] if len(sys.argv) > 1 else "0")
    for _ in range(10):
        asked, story = asked_for(draw)
        print(f"[{story.plot.name}] {asked.en} | {asked.zh}\n{story.text.en}\n{story.text.zh}")
        for question in story.questions:
            print(f"   {question.asked.en} {question.answer.en} | {question.asked.zh} {question.answer.zh}")
        print()


if __name__ == "__main__":
    main()
