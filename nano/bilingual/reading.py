"""Questions whose answer stands in the prompt: a few people and things, and stories. Nothing is known by heart.

The same little world is described in both languages; questions about what is not said are answered with "does not say".
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

from bilingual.language import Both, Exchange, both, count_zh, mended, number_en
from bilingual.stories import PLACES, asked_for, tell
from bilingual.words import Noun, Person, animals, colours, countries, noun, person, pet_name, pets, table, things

PORTABLE = tuple(
    thing.noun
    for thing in things()
    if thing.category.en
    in ("toy", "fruit", "school thing", "thing in the kitchen", "piece of clothing", "thing in the house", "tool")
    and thing.noun.en not in ("scissors", "oven", "fridge", "ladder", "clock", "shoe", "sock", "glove")
)
CONTAINERS = [
    (noun("box/boxes", "箱子"), "in", "里"),
    (noun("bag", "包"), "in", "里"),
    (noun("drawer", "抽屉"), "in", "里"),
    (noun("basket", "篮子"), "in", "里"),
    (noun("table", "桌子", "张"), "on", "上"),
    (noun("chair", "椅子", "把"), "on", "上"),
    (noun("bed", "床", "张"), "under", "底下"),
    (noun("cupboard", "柜子"), "in", "里"),
    (noun("shelf/shelves", "架子"), "on", "上"),
    (noun("bench/benches", "长椅", "张"), "under", "底下"),
    (noun("window", "窗户", "扇"), "at", "旁边"),
    (noun("bucket", "水桶"), "in", "里"),
]
ROOMS = [
    Both("the kitchen", "厨房"),
    Both("the garden", "花园"),
    Both("the bedroom", "卧室"),
    Both("the bathroom", "浴室"),
    Both("the school", "学校"),
    Both("the library", "图书馆"),
    Both("the shop", "商店"),
    Both("the park", "公园"),
    Both("the office", "办公室"),
    Both("the zoo", "动物园"),
    Both("the market", "市场"),
    Both("the museum", "博物馆"),
    Both("the station", "车站"),
    Both("the cinema", "电影院"),
]
REASONS = [
    ("stay in bed", Both("stayed in bed", "躺在床上"), Both("was ill", "生病了")),
    ("drink a lot of water", Both("drank a lot of water", "喝了好多水"), Both("was thirsty", "口渴了")),
    ("put on a coat", Both("put on a coat", "穿上了大衣"), Both("was cold", "觉得冷")),
    ("go to bed early", Both("went to bed early", "早早上床睡觉"), Both("was tired", "累了")),
    ("eat two bowls of rice", Both("ate two bowls of rice", "吃了两碗米饭"), Both("was hungry", "饿了")),
    ("take an umbrella along", Both("took an umbrella along", "带上了伞"), Both("saw dark clouds", "看见了乌云")),
    ("run to the bus stop", Both("ran to the bus stop", "跑向车站"), Both("was late", "要迟到了")),
    ("smile all day", Both("smiled all day", "笑了一整天"), Both("got a good mark", "考了好成绩")),
    ("cry", Both("cried", "哭了"), Both("fell off the bicycle", "从自行车上摔了下来")),
    ("open the window", Both("opened the window", "打开了窗户"), Both("was hot", "觉得热")),
    ("turn on the lamp", Both("turned on the lamp", "打开了灯"), Both("wanted to read", "想看书")),
    ("call the doctor", Both("called the doctor", "给医生打了电话"), Both("had a fever", "发烧了")),
    ("learn every evening", Both("learned every evening", "每天晚上学习"), Both("had an exam", "要考试")),
    ("bake a cake", Both("baked a cake", "烤了蛋糕"), Both("had guests", "有客人要来")),
]


def _people(draw: random.Random, n: int) -> list[Person]:
    found: list[Person] = []
    while len(found) < n:
        found.append(person(draw, tuple(found)))
    return found


def _coloured(thing: Noun, colour: Both) -> Both:
    return Both(mended(f"x a {colour.en} {thing.en}")[2:], f"一{thing.zh.c}{colour.zh}的{thing.zh}")


def _joined(lines: Sequence[Both], question: Both) -> Both:
    return Both(
        " ".join([*(line.en for line in lines), question.en]), "".join([*(line.zh for line in lines), question.zh])
    )


def _no_word(draw: random.Random, what: Both) -> Both:
    """The answer where the text says nothing."""
    return both(
        draw,
        "The text does not say {w}. / I do not know. The text does not say {w}.",
        "文中没有说{w}。 / 不知道，文中没有说{w}。",
        w=what,
    )


def who_has_what(draw: random.Random) -> list[Exchange]:
    """Two to four people, each with a coloured thing."""
    n = draw.choice([2, 2, 3, 3, 4])
    people = _people(draw, n)
    owned = draw.sample(PORTABLE, n)
    painted = draw.sample(colours(), n)
    lines = [
        both(draw, "{n} has {t}.", "{n}有{t}。", n=p.name, t=_coloured(t, c)) for p, t, c in zip(people, owned, painted)
    ]
    i = draw.randrange(n)
    who, thing, colour = people[i], owned[i], painted[i]
    kind = draw.choice(["colour", "who", "what", "who colour", "yes", "not said"])
    if kind == "colour":
        question = both(
            draw,
            "What colour is {n}'s {t}? / Which colour does {n}'s {t} have?",
            "{n}的{t}是什么颜色的？",
            n=who.name,
            t=thing,
        )
        answer = both(draw, "{n}'s {t} is {c}.", "{n}的{t}是{c}的。", n=who.name, t=thing, c=colour)
        return [Exchange(_joined(lines, question), answer, colour)]
    if kind == "who":
        question = both(draw, "Who has the {t}?", "{t}是谁的？ / 谁有{t}？", t=thing)
        return [
            Exchange(
                _joined(lines, question), both(draw, "{n} has the {t}.", "{n}有{t}。", n=who.name, t=thing), who.name
            )
        ]
    if kind == "what":
        question = both(draw, "What does {n} have?", "{n}有什么？", n=who.name)
        return [Exchange(_joined(lines, question), lines[i], _coloured(thing, colour))]
    if kind == "who colour":
        question = both(draw, "Who has something {c}?", "谁有{c}的东西？", c=colour)
        answer = both(
            draw,
            "{n} has something {c}: {t}.",
            "{n}有{c}的东西：{t}。",
            n=who.name,
            c=colour,
            t=_coloured(thing, colour),
        )
        return [Exchange(_joined(lines, question), answer, who.name)]
    if kind == "yes":
        said = thing if draw.random() < 0.5 else draw.choice(owned)
        yes = said == thing
        question = both(draw, "Does {n} have {t.a}?", "{n}有{t}吗？", n=who.name, t=said)
        truth = lines[i]
        answer = Both(f"{'Yes' if yes else 'No'}, {truth.en}", f"{'有' if yes else '没有'}，{truth.zh}")
        return [Exchange(_joined(lines, question), answer, Both("yes" if yes else "no", "有" if yes else "没有"))]
    question = both(draw, "How old is {n}?", "{n}几岁了？", n=who.name)
    return [Exchange(_joined(lines, question), _no_word(draw, Both(f"how old {who.name.en} is", f"{who.name.zh}几岁")))]


def where_is_it(draw: random.Random) -> list[Exchange]:
    """A thing is put somewhere and perhaps moved by others."""
    moves = draw.choice([1, 2, 2, 3])
    people = _people(draw, moves)
    thing = draw.choice(PORTABLE)
    spots = draw.sample(CONTAINERS, moves)
    lines = []
    for i, (who, (place, at, at_zh)) in enumerate(zip(people, spots)):
        start = (
            Both("", "")
            if i == 0
            else draw.choice([Both("Then ", "后来"), Both("Later ", "过了一会儿，"), Both("After that, ", "接着")])
        )
        lines.append(
            both(
                draw,
                "{s}{n} {v} the {t} {at} the {p}.",
                "{s}{n}把{t}{z}{p}{q}。",
                s=start,
                n=who.name,
                v="put" if i == 0 else draw.choice(["put", "laid"]),
                z="放在" if i == 0 else draw.choice(["放到了", "移到了"]),
                t=thing,
                at=at,
                p=place,
                q=at_zh,
            )
        )
    place, at, at_zh = spots[-1]
    if draw.random() < 0.7:
        question = both(draw, "Where is the {t} now?", "{t}现在在哪里？", t=thing)
        spot = Both(f"{at} the {place.en}", f"{place.zh}{at_zh}")
        return [Exchange(_joined(lines, question), both(draw, "The {t} is {s}.", "{t}在{s}。", t=thing, s=spot), spot)]
    who = people[0]
    place, at, at_zh = spots[0]
    question = both(draw, "Where did {n} put the {t}?", "{n}把{t}放在哪里了？", n=who.name, t=thing)
    spot = Both(f"{at} the {place.en}", f"{place.zh}{at_zh}")
    return [
        Exchange(
            _joined(lines, question),
            both(draw, "{n} put the {t} {s}.", "{n}把{t}放在了{s}。", n=who.name, t=thing, s=spot),
            spot,
        )
    ]


def who_is_where(draw: random.Random) -> list[Exchange]:
    """People go from place to place."""
    n = draw.choice([2, 2, 3])
    people = _people(draw, n)
    at: dict[int, Both] = {}
    first: dict[int, Both] = {}
    lines = []
    for _ in range(draw.randint(n, n + 2)):
        i = draw.randrange(n) if len(at) == n else len(at)
        room = draw.choice([room for room in ROOMS if room != at.get(i)])
        if i in at:
            first[i] = at[i]
        at[i] = room
        lines.append(
            both(
                draw, "{n} went to {r}. / {n} walked to {r}.", "{n}去了{r}。 / {n}走到了{r}。", n=people[i].name, r=room
            )
        )
    i = draw.choice(list(first)) if first and draw.random() < 0.4 else draw.randrange(n)
    if i in first and draw.random() < 0.5:
        question = both(draw, "Where was {n} before {r}?", "{n}去{r}之前在哪里？", n=people[i].name, r=at[i])
        answer = both(
            draw, "Before {r}, {n} was in {f}.", "去{r}之前，{n}在{f}。", n=people[i].name, r=at[i], f=first[i]
        )
        return [Exchange(_joined(lines, question), answer, first[i])]
    question = both(draw, "Where is {n} now? / Where is {n}?", "{n}现在在哪里？ / {n}在哪里？", n=people[i].name)
    return [
        Exchange(_joined(lines, question), both(draw, "{n} is in {r}.", "{n}在{r}。", n=people[i].name, r=at[i]), at[i])
    ]


ORDERS = [
    (Both("taller", "高"), Both("tallest", "最高"), Both("shortest", "最矮")),
    (Both("older", "大"), Both("oldest", "年龄最大"), Both("youngest", "年龄最小")),
    (Both("faster", "跑得快"), Both("fastest", "跑得最快"), Both("slowest", "跑得最慢")),
    (Both("stronger", "力气大"), Both("strongest", "力气最大"), Both("weakest", "力气最小")),
]


def who_is_taller(draw: random.Random) -> list[Exchange]:
    n = draw.choice([2, 3, 3])
    people = _people(draw, n)
    more, most, least = draw.choice(ORDERS)
    lines = [
        both(draw, "{a} is {m} than {b}.", "{a}比{b}{m}。", a=a.name, b=b.name, m=more) for a, b in pairwise(people)
    ]
    draw.shuffle(lines)
    if n == 2:
        question = both(
            draw,
            "Who is {m}?",
            "谁{m}？",
            m=Both(more.en, "更" + more.zh if "得" not in more.zh and "力气" not in more.zh else more.zh),
        )
        return [
            Exchange(
                _joined(lines, question),
                both(
                    draw,
                    "{a} is {m}.",
                    "{a}{m}。",
                    a=people[0].name,
                    m=Both(more.en, "更" + more.zh if "得" not in more.zh and "力气" not in more.zh else more.zh),
                ),
                people[0].name,
            )
        ]
    is_most = draw.random() < 0.5
    found, word = (people[0], most) if is_most else (people[-1], least)
    question = both(draw, "Who is the {w}?", "谁{w}？ / 三个人里谁{w}？", w=word)
    return [
        Exchange(_joined(lines, question), both(draw, "{a} is the {w}.", "{a}{w}。", a=found.name, w=word), found.name)
    ]


def gives(draw: random.Random) -> list[Exchange]:
    """A thing is handed on."""
    people = _people(draw, draw.choice([2, 3, 3]))
    thing = draw.choice(PORTABLE)
    lines = []
    for i, (a, b) in enumerate(pairwise(people)):
        lines.append(
            both(
                draw,
                "{a} gave the {t} to {b}." if i == 0 else "Then {b2} got it from {a}.",
                "{a}把{t}给了{b}。" if i == 0 else "然后{a}把它给了{b}。",
                a=a.name,
                b=b.name,
                b2=b.name,
                t=thing,
            )
        )
    if draw.random() < 0.6:
        question = both(draw, "Who has the {t} now?", "现在{t}在谁那里？", t=thing)
        return [
            Exchange(
                _joined(lines, question),
                both(draw, "{n} has the {t} now.", "现在{t}在{n}那里。", n=people[-1].name, t=thing),
                people[-1].name,
            )
        ]
    question = both(draw, "Who had the {t} first?", "{t}一开始是谁的？", t=thing)
    return [
        Exchange(
            _joined(lines, question),
            both(draw, "{n} had the {t} first.", "{t}一开始是{n}的。", n=people[0].name, t=thing),
            people[0].name,
        )
    ]


def profile(draw: random.Random) -> list[Exchange]:
    """What is told about one or two people, and one or two questions about them."""
    n = draw.choice([1, 1, 2])
    people = _people(draw, n)
    facts: list[tuple[Both, Both, Both, Both]] = []  # sentence, question, answer, short
    for who in people:
        name = who.name
        job = draw.choice(table("jobs"))
        city = draw.choice(countries()).capital
        age = draw.randint(5, 90)
        pet = draw.choice(pets())
        pet_called = pet_name(draw)
        colour = draw.choice(colours())
        fruit = draw.choice([t for t in things() if t.category.en == "fruit"])
        options = [
            (
                both(draw, "{n} is {a} years old.", "{n}今年{a}岁。", n=name, a=age),
                both(draw, "How old is {n}?", "{n}几岁了？ / {n}多大了？", n=name),
                both(draw, "{n} is {a} years old.", "{n}今年{a}岁。", n=name, a=age),
                Both(str(age), f"{age}岁"),
            ),
            (
                both(draw, "{he} lives in {c}.", "{n}住在{c}。", n=name, he=name, c=city),
                both(
                    draw,
                    "Where does {n} live? / In which city does {n} live?",
                    "{n}住在哪里？ / {n}住在哪个城市？",
                    n=name,
                ),
                both(draw, "{n} lives in {c}.", "{n}住在{c}。", n=name, c=city),
                city,
            ),
            (
                both(
                    draw,
                    "{n} has a {k} called {p}.",
                    "{n}养了一{m}{k}，叫{p}。",
                    n=name,
                    k=pet.noun,
                    p=pet_called,
                    m=pet.noun.zh.c,
                ),
                both(
                    draw,
                    "What is the name of {n}'s {k}? / What is {n}'s {k} called?",
                    "{n}的{k}叫什么？ / {n}养的{k}叫什么名字？",
                    n=name,
                    k=pet.noun,
                ),
                both(draw, "{n}'s {k} is called {p}.", "{n}的{k}叫{p}。", n=name, k=pet.noun, p=pet_called),
                pet_called,
            ),
            (
                both(draw, "{n}'s favourite colour is {c}.", "{n}最喜欢{c}。", n=name, c=colour),
                both(
                    draw,
                    "What is {n}'s favourite colour? / Which colour does {n} like best?",
                    "{n}最喜欢什么颜色？",
                    n=name,
                ),
                both(draw, "{n}'s favourite colour is {c}.", "{n}最喜欢{c}。", n=name, c=colour),
                colour,
            ),
            (
                both(draw, "{n} likes {f.plural}.", "{n}爱吃{f}。", n=name, f=fruit.noun),
                both(
                    draw,
                    "What does {n} like to eat? / Which fruit does {n} like?",
                    "{n}爱吃什么？ / {n}爱吃什么水果？",
                    n=name,
                ),
                both(draw, "{n} likes {f.plural}.", "{n}爱吃{f}。", n=name, f=fruit.noun),
                Both(fruit.noun.en.plural, str(fruit.noun.zh)),
            ),
        ]
        if age > 20:
            options.append(
                (
                    both(draw, "{n} is {j}.", "{n}是{j}。", n=name, j=Both(f"a {job[0]}", job[1])),
                    both(
                        draw,
                        "What is {n}'s job? / What does {n} do for a living?",
                        "{n}是做什么工作的？ / {n}的职业是什么？",
                        n=name,
                    ),
                    both(draw, "{n} is {j}.", "{n}是{j}。", n=name, j=Both(f"a {job[0]}", job[1])),
                    Both(job[0], job[1]),
                )
            )
        facts += draw.sample(options, draw.randint(2, 4))
    draw.shuffle(facts)
    lines = [sentence for sentence, _, _, _ in facts]
    asked = draw.sample(facts, draw.choice([1, 1, 2]))
    exchanges = [Exchange(_joined(lines, asked[0][1]), asked[0][2], asked[0][3])]
    if len(asked) > 1:
        exchanges.append(Exchange(asked[1][1], asked[1][2], asked[1][3]))
    if draw.random() < 0.15:
        who = draw.choice(people)
        missing, tells = draw.choice(
            [
                (
                    both(draw, "How tall is {n}?", "{n}有多高？", n=who.name),
                    Both(f"how tall {who.name.en} is", f"{who.name.zh}有多高"),
                ),
                (
                    both(draw, "What is the name of {n}'s mother?", "{n}的妈妈叫什么？", n=who.name),
                    Both(f"the name of {who.name.en}'s mother", f"{who.name.zh}的妈妈叫什么"),
                ),
                (
                    both(draw, "Does {n} have a brother?", "{n}有弟弟吗？", n=who.name),
                    Both(f"whether {who.name.en} has a brother", f"{who.name.zh}有没有弟弟"),
                ),
                (
                    both(draw, "What is {n}'s telephone number?", "{n}的电话号码是多少？", n=who.name),
                    Both(f"{who.name.en}'s telephone number", f"{who.name.zh}的电话号码"),
                ),
            ]
        )
        exchanges.append(Exchange(missing, _no_word(draw, tells)))
    return exchanges


def why(draw: random.Random) -> list[Exchange]:
    who, other = _people(draw, 2)
    (verb, did, because), (_, did_2, because_2) = draw.sample(REASONS, 2)
    line = both(
        draw,
        "{n} {d} because {he} {b}. / {n} {b}. So {he} {d}.",
        "{n}因为{b}，所以{d}。 / {n}{b}，于是{d}。",
        n=who.name,
        he=who.he,
        d=did,
        b=because,
    )
    second = both(
        draw, "{n} {d} because {he} {b}.", "{n}因为{b}，所以{d}。", n=other.name, he=other.he, d=did_2, b=because_2
    )
    lines = [line, second] if draw.random() < 0.5 else [line]
    draw.shuffle(lines)
    question = both(draw, "Why did {n} {v}?", "{n}为什么{d}？", n=who.name, v=verb, d=did)
    answer = both(
        draw,
        "Because {he} {b}. / {n} {d} because {he} {b}.",
        "因为{n}{b}。 / 因为{b}。",
        n=who.name,
        he=who.he,
        b=because,
        d=did,
    )
    return [Exchange(_joined(lines, question), answer, because)]


def counted(draw: random.Random) -> list[Exchange]:
    """How many of each are somewhere."""
    kinds = draw.sample([a.noun for a in animals() if a.noun.en not in ("fish", "sheep", "deer")], draw.choice([2, 3]))
    numbers = [draw.randint(2, 9) for _ in kinds]
    place = draw.choice(PLACES)
    shown = [noun_.some_in_words(n) for noun_, n in zip(kinds, numbers)]
    en = ", ".join(s.en for s in shown[:-1]) + f" and {shown[-1].en}"
    zh = "、".join(s.zh for s in shown[:-1]) + f"和{shown[-1].zh}"
    line = Both(f"There are {en} {place[1]}.", f"{place[4]}有{zh}。")
    if draw.random() < 0.7:
        i = draw.randrange(len(kinds))
        question = both(draw, "How many {k.plural} are there?", "有几{c}{k}？", k=kinds[i], c=kinds[i].zh.c)
        answer = Both(f"There are {shown[i].en}.", f"有{shown[i].zh}。")
        return [Exchange(_joined([line], question), answer, Both(number_en(numbers[i]), count_zh(numbers[i])))]
    total = sum(numbers)
    question = both(draw, "How many animals are there in all?", "一共有多少只动物？")
    sums = " + ".join(map(str, numbers))
    return [
        Exchange(
            _joined([line], question),
            Both(f"{sums} = {total}, so there are {total} animals.", f"{sums} = {total}，一共有{total}只动物。"),
            Both(str(total), str(total)),
        )
    ]


def about_a_story(draw: random.Random) -> list[Exchange]:
    """A story in the prompt, with questions; or a story told on request, with questions afterwards."""
    if draw.random() < 0.5:
        story = tell(draw)
        questions = draw.sample(story.questions, draw.choice([1, 1, 2, 3]))
        first = questions[0]
        head = both(
            draw,
            "{s}\n\n{q} / Read the story and answer. {s}\n\n{q} / {s}\n{q} / {q}\n\n{s}",
            "{s}\n\n{q} / 读故事，回答问题。{s}\n\n{q} / {s}\n{q} / {q}\n\n{s}",
            s=Both("\0", "\0"),
            q=first.asked,
        )
        asked = Both(head.en.replace("\0", story.text.en), head.zh.replace("\0", story.text.zh))
        return [Exchange(asked, first.answer, first.short), *questions[1:]]
    request, story = asked_for(draw)
    questions = draw.sample(story.questions, draw.choice([1, 2, 2, 3]))
    return [Exchange(request, story.text), *questions]


def story_gist(draw: random.Random) -> list[Exchange]:
    """What a story teaches, or a title for it."""
    story = tell(draw)
    theme = draw.choice(story.plot.themes)
    if draw.random() < 0.5:
        asked = both(
            draw,
            "{s}\n\nWhat is this story about? / {s}\n\nWhat is the topic of the story?",
            "{s}\n\n这个故事的主题是什么？ / {s}\n\n这个故事是关于什么的？",
            s=Both("\0", "\0"),
        )
        answer = both(draw, "The story is about {t}.", "这个故事是关于{t}的。", t=theme)
    else:
        asked = both(
            draw, "{s}\n\nWhat can we learn from this story?", "{s}\n\n这个故事告诉我们什么？", s=Both("\0", "\0")
        )
        slots = {"H": story.hero.name, "his": story.hero.his, "he": story.hero.he}
        answer = both(draw, story.plot.moral.en, story.plot.moral.zh, **slots)
    return [Exchange(Both(asked.en.replace("\0", story.text.en), asked.zh.replace("\0", story.text.zh)), answer)]


KINDS_OF_READING = {
    who_has_what: 14,
    where_is_it: 12,
    who_is_where: 10,
    who_is_taller: 10,
    gives: 10,
    profile: 22,
    why: 10,
    counted: 8,
}


def small_world(draw: random.Random) -> list[Exchange]:
    """A short text with questions, of any kind but stories."""
    return draw.choices(list(KINDS_OF_READING), list(KINDS_OF_READING.values()))[0](draw)
