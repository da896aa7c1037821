"""Questions about the world with one right answer, asked openly, as yes or no, or as a choice of four.

A fact is drawn from the tables of words.py and asked about in both languages; a "no" names what is true instead.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import tables

from bilingual.language import Both, Exchange, both, count_zh, number_en
from bilingual.words import (
    CONTINENTS,
    KINDS,
    Animal,
    Thing,
    animals,
    colour_named,
    colours,
    countries,
    listed,
    noun,
    table,
    things,
)

PIECES = {"piece of furniture": "pieces of furniture", "piece of clothing": "pieces of clothing"}
YES, NO = Both("yes", "是"), Both("no", "不是")


def _animal(draw: random.Random, fits: Callable[[Animal], bool] = lambda _: True) -> Animal:
    return draw.choice([animal for animal in animals() if fits(animal)])


def _legs(animal: Animal) -> Both:
    n = animal.legs
    legs = "legs" if animal.noun.en != "octopus" else "arms"
    if n == 0:
        return Both(f"{_a(animal)} has no legs.", f"{animal.noun.zh}没有腿。")
    zh = "只手臂" if legs == "arms" else "条腿"
    return Both(f"{_a(animal)} has {number_en(n)} {legs}.", f"{animal.noun.zh}有{count_zh(n)}{zh}。")


def _a(animal: Animal) -> str:
    article = "An" if animal.noun.en[0] in "aeiou" else "A"
    return f"{article} {animal.noun.en}"


def animal_fact(draw: random.Random) -> list[Exchange]:
    kind = draw.choice(
        [
            "legs",
            "legs?",
            "sound",
            "who",
            "young",
            "home",
            "food",
            "class",
            "class?",
            "fly",
            "swim",
            "size",
            "size?",
            "home?",
            "food?",
            "sound?",
        ]
    )
    if kind in ("legs", "legs?"):
        animal = _animal(draw, lambda a: a.noun.en != "bat")
        if kind == "legs":
            asked = both(
                draw,
                "How many legs does {n.a} have? / How many legs has {n.a}? / How many legs do {n.plural} have?"
                if animal.noun.en != "octopus"
                else "How many arms does {n.a} have?",
                "{n}有几条腿？ / 一{n.c}{n}有多少条腿？ / {n}长着几条腿？"
                if animal.noun.en != "octopus"
                else "{n}有几只手臂？",
                n=animal.noun,
            )
            number = Both(
                number_en(animal.legs) if animal.legs else "none", count_zh(animal.legs) if animal.legs else "没有"
            )
            return [Exchange(asked, _legs(animal), number)]
        animal = _animal(draw, lambda a: a.noun.en not in ("bat", "octopus"))
        said = draw.choice([2, 4, 6, 8])
        yes = said == animal.legs
        asked = both(
            draw,
            "Does {n.a} have {l} legs? / Do {n.plural} have {l} legs?",
            "{n}有{m}条腿吗？ / {n}是{m}条腿吗？",
            n=animal.noun,
            l=number_en(said),
            m=count_zh(said),
        )
        return [_yes_no(asked, yes, _legs(animal))]
    if kind == "sound?":
        animal, other = (_animal(draw, lambda a: a.sound is not None) for _ in range(2))
        assert animal.sound and other.sound
        yes = animal.sound == other.sound
        asked = both(
            draw,
            "Does {n.a} say {s}? / Do {n.plural} say {s}?",
            "{n}是{s}叫的吗？ / {n}的叫声是“{s}”吗？",
            n=animal.noun,
            s=other.sound,
        )
        return [
            _yes_no(asked, yes, Both(f"{_a(animal)} says {animal.sound.en}.", f"{animal.noun.zh}{animal.sound.zh}叫。"))
        ]
    if kind in ("sound", "who"):
        animal = _animal(draw, lambda a: a.sound is not None)
        assert animal.sound is not None
        if kind == "sound":
            asked = both(
                draw,
                "What sound does {n.a} make? / What does {n.a} say? / What noise does {n.a} make? / "
                "What do {n.plural} say?",
                "{n}怎么叫？ / {n}的叫声是什么样的？ / {n}是怎么叫的？ / {n}会怎么叫？",
                n=animal.noun,
            )
            return [
                Exchange(
                    asked,
                    Both(f"{_a(animal)} says {animal.sound.en}.", f"{animal.noun.zh}{animal.sound.zh}叫。"),
                    animal.sound,
                )
            ]
        alike = [a for a in animals() if a.sound and (a.sound.en == animal.sound.en or a.sound.zh == animal.sound.zh)]
        if len(alike) > 1:
            return animal_fact(draw)
        asked = both(
            draw,
            "Which animal says {s}? / What animal makes the sound {s}? / Who says {s}?",
            "什么动物{s}叫？ / 哪种动物的叫声是“{s}”？",
            s=animal.sound,
        )
        return [
            Exchange(
                asked,
                Both(f"{_a(animal)} says {animal.sound.en}.", f"{animal.noun.zh}{animal.sound.zh}叫。"),
                Both(animal.noun.en.a, str(animal.noun.zh)),
            )
        ]
    if kind == "young":
        animal = _animal(draw)
        asked = both(
            draw,
            "What is a baby {n} called? / What do you call a baby {n}? / What do we call a young {n}? / "
            "What is the name for a young {n}?",
            "{n}的宝宝叫什么？ / 小时候的{n}叫什么？ / {n}的孩子叫什么？ / {n}的幼崽怎么称呼？",
            n=animal.noun,
        )
        return [
            Exchange(
                asked,
                Both(
                    f"A baby {animal.noun.en} is called a {animal.young.en}.".replace("called a i", "called an i"),
                    f"{animal.noun.zh}的宝宝叫{animal.young.zh}。",
                ),
                animal.young,
            )
        ]
    if kind == "home":
        animal = _animal(draw)
        asked = both(
            draw,
            "Where does {n.a} live? / Where do {n.plural} live? / Where can I find {n.a}?",
            "{n}住在哪里？ / {n}生活在什么地方？ / 在哪里能找到{n}？",
            n=animal.noun,
        )
        return [Exchange(asked, _lives(animal), animal.home)]
    if kind == "home?":
        animal, other = _animal(draw), _animal(draw)
        homes = {
            "in the sea",
            "in a hive",
            "in a nest",
            "in a pond",
            "in a web",
            "in the desert",
            "in a bamboo forest",
            "on a farm",
        }
        if other.home.en not in homes or (animal.home.en != other.home.en and animal.kind == other.kind):
            return animal_fact(draw)
        yes = animal.home == other.home
        asked = both(
            draw,
            "Does {n.a} live {h}? / Do {n.plural} live {h}?",
            "{n}住在{h}吗？ / {n}是住在{h}的吗？",
            n=animal.noun,
            h=other.home,
        )
        return [_yes_no(asked, yes, _lives(animal))]
    if kind == "food":
        animal = _animal(draw)
        asked = both(
            draw,
            "What does {n.a} eat? / What do {n.plural} eat? / What does {n.a} like to eat? / "
            "What food does {n.a} like?",
            "{n}吃什么？ / {n}喜欢吃什么？ / {n}爱吃什么？ / 喂{n}要喂什么？",
            n=animal.noun,
        )
        return [Exchange(asked, _eats(animal), animal.food)]
    if kind == "food?":
        animal, other = (
            _animal(draw),
            _animal(draw, lambda a: a.food.en in ("grass", "bamboo", "nuts", "nectar", "meat", "hay", "mice")),
        )
        if animal.food.en != other.food.en and (
            other.food.en.split()[0] in animal.food.en
            or (animal.legs == other.legs == 4 and animal.food.en[0] == other.food.en[0])
        ):
            return animal_fact(draw)
        if animal.food.en != other.food.en and other.food.en in ("grass", "hay") and animal.size > 4:
            return animal_fact(draw)
        asked = both(
            draw,
            "Does {n.a} eat {f}? / Do {n.plural} eat {f}?",
            "{n}吃{f}吗？ / {n}爱吃{f}吗？",
            n=animal.noun,
            f=other.food,
        )
        short = Both("yes", "是") if animal.food == other.food else Both("no", "不吃")
        return [_yes_no(asked, animal.food == other.food, _eats(animal), short)]
    if kind == "class":
        animal = _animal(draw, lambda a: a.noun.en != "fish")
        name = KINDS[animal.kind]
        asked = both(
            draw,
            "What kind of animal is {n.a}? / What type of animal is {n.a}?",
            "{n}是哪一类动物？ / {n}属于什么动物？",
            n=animal.noun,
        )
        return [Exchange(asked, _is_kind(animal), name)]
    if kind == "class?":
        animal = _animal(draw, lambda a: a.noun.en != "fish")
        said = draw.choice(["mammal", "bird", "insect", "fish", "reptile"])
        asked = both(
            draw,
            "Is {n.a} {k}? / Are {n.plural} {p}?",
            "{n}是{k}吗？ / {n}属于{k}吗？",
            n=animal.noun,
            k=Both(f"a {said}", KINDS[said].zh),
            p="fish" if said == "fish" else said + "s",
        )
        return [_yes_no(asked, said == animal.kind, _is_kind(animal))]
    if kind == "fly":
        animal = _animal(draw)
        asked = both(
            draw,
            "Can {n.a} fly? / Can {n.plural} fly? / Is {n.a} able to fly?",
            "{n}会飞吗？ / {n}能飞吗？",
            n=animal.noun,
        )
        word = "can" if animal.flies else "cannot"
        answer = Both(f"{_a(animal)} {word} fly.", f"{animal.noun.zh}{'会' if animal.flies else '不会'}飞。")
        return [
            _yes_no(
                asked, animal.flies, answer, Both("yes" if animal.flies else "no", "会" if animal.flies else "不会")
            )
        ]
    if kind == "swim":
        animal = _animal(
            draw,
            lambda a: (
                a.swims or a.noun.en in ("chicken", "sparrow", "butterfly", "snail", "bee", "pigeon", "owl", "spider")
            ),
        )
        asked = both(draw, "Can {n.a} swim? / Can {n.plural} swim?", "{n}会游泳吗？ / {n}能在水里游吗？", n=animal.noun)
        word = "can" if animal.swims else "cannot"
        answer = Both(f"{_a(animal)} {word} swim.", f"{animal.noun.zh}{'会' if animal.swims else '不会'}游泳。")
        return [
            _yes_no(
                asked, animal.swims, answer, Both("yes" if animal.swims else "no", "会" if animal.swims else "不会")
            )
        ]
    one = _animal(draw)
    other = _animal(draw, lambda a: abs(a.size - one.size) > 1)
    if kind == "size":
        big = draw.random() < 0.6
        found = max(one, other, key=lambda a: a.size) if big else min(one, other, key=lambda a: a.size)
        rest = other if found is one else one
        asked = both(
            draw,
            "Which is {w}, {a.a} or {b.a}? / Which animal is {w}: {a.a} or {b.a}? / Is {a.a} or {b.a} {w}?",
            "{a}和{b}哪个{w}？ / {a}大还是{b}大？ / {a}和{b}，谁更{w}？"
            if big
            else "{a}和{b}哪个{w}？ / {a}和{b}，谁更{w}？",
            w=Both(draw.choice(["bigger", "larger"]) if big else "smaller", "大" if big else "小"),
            a=one.noun,
            b=other.noun,
        )
        word = Both("bigger" if big else "smaller", "大" if big else "小")
        return [
            Exchange(
                asked,
                Both(
                    f"{_a(found)} is {word.en} than {rest.noun.en.a}.".replace(" a o", " an o")
                    .replace(" a e", " an e")
                    .replace(" a a", " an a"),
                    f"{found.noun.zh}比{rest.noun.zh}{word.zh}。",
                ),
                Both(found.noun.en.the, str(found.noun.zh)),
            )
        ]
    yes = one.size > other.size
    asked = both(
        draw,
        "Is {a.a} bigger than {b.a}? / Are {a.plural} bigger than {b.plural}?",
        "{a}比{b}大吗？ / {a}的个头比{b}大吗？",
        a=one.noun,
        b=other.noun,
    )
    answer = both(
        draw,
        "{a.A} is {w} than {b.a}.",
        "{a}比{b}{w}。",
        a=WithArticle(one),
        b=other.noun,
        w=Both("bigger" if yes else "smaller", "大" if yes else "小"),
    )
    return [_yes_no(asked, yes, answer)]


class WithArticle:
    """A noun for slots whose A is "An owl" rather than "Owl"."""

    def __init__(self, animal: Animal):
        self.en, self.zh = animal.noun.en, animal.noun.zh
        self.A = _a(animal)

    def __getitem__(self, language: str) -> object:
        return self if language == "en" else self.zh


def _lives(animal: Animal) -> Both:
    return Both(
        f"{_a(animal)} lives {animal.home.en}.",
        f"{animal.noun.zh}{'住' if animal.home.zh != '澳大利亚' else '生活'}在{animal.home.zh}。",
    )


def _eats(animal: Animal) -> Both:
    return Both(f"{_a(animal)} eats {animal.food.en}.", f"{animal.noun.zh}吃{animal.food.zh}。")


def _is_kind(animal: Animal) -> Both:
    name = KINDS[animal.kind]
    article = "an" if name.en[0] in "aeiou" else "a"
    return Both(f"{_a(animal)} is {article} {name.en}.", f"{animal.noun.zh}是{name.zh}。")


def _yes_no(asked: Both, yes: bool, truth: Both, short: Both | None = None) -> Exchange:
    """Yes or no, and the fact with it."""
    short = short or (YES if yes else NO)
    en_truth = truth.en if truth.en[:2] in ("I ",) else truth.en[:1].lower() + truth.en[1:]
    zh_yes = {"会": "会的", "不会": "不会", "是": "是的", "不是": "不是"}.get(short.zh, short.zh)
    return Exchange(
        asked,
        Both(f"{'Yes' if yes else 'No'}, {en_truth}", f"{zh_yes}，{truth.zh}"),
        Both("yes" if yes else "no", short.zh),
    )


def thing_fact(draw: random.Random) -> list[Exchange]:
    kind = draw.choice(
        [
            "use",
            "use",
            "what for",
            "category",
            "category",
            "category?",
            "colour",
            "colour?",
            "edible?",
            "taste",
            "name some",
            "odd",
        ]
    )
    with_use = [t for t in things() if t.about and not t.is_edible]
    if kind in ("use", "what for"):
        thing = draw.choice(with_use)
        assert thing.about is not None
        if kind == "use":
            asked = both(
                draw,
                "What is {n.a} for? / What do you use {n.a} for? / What can you do with {n.a}? / "
                "What do we need {n.a} for?"
                if thing.noun.en != "scissors"
                else "What are scissors for? / What do you use scissors for?",
                "{n}是用来做什么的？ / {n}有什么用？ / {n}可以用来干什么？ / 我们用{n}做什么？",
                n=thing.noun,
            )
            return [Exchange(asked, _use(thing), thing.about)]
        alike = [t for t in with_use if t.about == thing.about]
        if len(alike) > 1:
            return thing_fact(draw)
        asked = both(
            draw,
            "What do you use {u}? / What do we need {u}? / Which thing is there {u}?",
            "什么东西可以用来{u}？ / 我们用什么来{u}？ / 要{u}，需要什么？",
            u=thing.about,
        )
        one = thing.noun.en if thing.noun.en == "scissors" else _an(thing.noun.en)
        return [
            Exchange(
                asked,
                Both(f"You use {one} {thing.about.en}.", f"可以用{thing.noun.zh}来{thing.about.zh}。"),
                Both(one, str(thing.noun.zh)),
            )
        ]
    if kind == "category":
        thing = draw.choice(things())
        asked = both(
            draw,
            "What is {n.a}? / What kind of thing is {n.a}?",
            "{n}是什么？ / {n}是什么东西？ / {n}属于哪一类？",
            n=thing.noun,
        )
        return [Exchange(asked, _is_a(thing), _category(thing))]
    if kind == "category?":
        thing = draw.choice(things())
        other = thing if draw.random() < 0.5 else draw.choice(things())
        yes = other.category == thing.category
        asked = both(
            draw,
            "Is {n.a} {c}? / Would you say that {n.a} is {c}?",
            "{n}是{c}吗？ / {n}是一种{c}吗？",
            n=thing.noun,
            c=_category(other),
        )
        return [_yes_no(asked, yes, _is_a(thing))]
    if kind in ("colour", "colour?"):
        coloured = [(Both(en, zh), colour_named(colour)) for en, zh, colour in table("coloured")]
        coloured += [(Both(t.noun.en.a, str(t.noun.zh)), colour_named(t.colour)) for t in things() if t.colour]
        what, colour = draw.choice(coloured)
        plural = what.en.startswith("leaves")
        truth = Both(
            f"{_cap(_an_again(what.en))} {'are' if plural else 'is'} {colour.en}.", f"{what.zh}是{colour.zh}的。"
        )
        if kind == "colour":
            is_are = "are" if plural else "is"
            asked = both(
                draw,
                f"What colour {is_are} {{w}}? / Which colour does {{w}} have? / What color {is_are} {{w}}?"
                if not plural
                else "What colour are {w}?",
                "{w}是什么颜色的？ / {w}是什么颜色？ / {w}什么颜色？",
                w=what,
            )
            return [Exchange(asked, truth, colour)]
        said = colour if draw.random() < 0.5 else draw.choice(colours())
        asked = both(
            draw, ("Are" if plural else "Is") + " {w} {c}?", "{w}是{c}的吗？ / {w}的颜色是{c}吗？", w=what, c=said
        )
        return [_yes_no(asked, said == colour, truth)]
    if kind == "edible?":
        thing = draw.choice(things())
        one = _an(thing.noun.en) if thing.noun.en != "scissors" else "scissors"
        asked = both(
            draw,
            "Can you eat {n.a}? / Can we eat {n.plural}? / Is {n.a} something to eat?",
            "{n}能吃吗？ / {n}可以吃吗？",
            n=thing.noun,
        )
        truth = Both(
            f"You {'can' if thing.is_edible else 'cannot'} eat {one}.",
            f"{thing.noun.zh}{'可以' if thing.is_edible else '不能'}吃。",
        )
        return [
            _yes_no(
                asked,
                thing.is_edible,
                truth,
                Both("yes" if thing.is_edible else "no", "可以" if thing.is_edible else "不能"),
            )
        ]
    if kind == "taste":
        rows = [(Both(en, zh), Both(t_en, t_zh)) for en, zh, t_en, t_zh in table("tastes")]
        rows += [(Both(t.noun.en.a, str(t.noun.zh)), t.about) for t in things() if t.is_edible and t.about]
        what, taste = draw.choice(rows)
        asked = both(
            draw,
            "How does {w} taste? / What does {w} taste like? / What is the taste of {w}?",
            "{w}是什么味道的？ / {w}尝起来怎么样？ / {w}是什么味道？",
            w=what,
        )
        return [
            Exchange(asked, Both(f"{_cap(_an_again(what.en))} tastes {taste.en}.", f"{what.zh}是{taste.zh}的。"), taste)
        ]
    if kind == "name some":
        categories = sorted({t.category.en for t in things()} - {"food", "school thing"})
        name = draw.choice(categories)
        members = [t for t in things() if t.category.en == name]
        n = draw.randint(2, min(5, len(members)))
        chosen = draw.sample(members, n)
        asked = both(
            draw,
            "Name {n} {c}. / Tell me {n} {c}. / List {n} {c}. / Can you name {n} {c}? / Give me {n} examples of {c}.",
            "说出{m}种{c}。 / 列举{m}种{c}。 / 举{m}个{c}的例子。 / 你能说出{m}种{c}吗？ / 写出{m}种{c}。",
            n=number_en(n),
            m=count_zh(n),
            c=Both(PIECES.get(name, members[0].category_plural), members[0].category.zh),
        )
        names = listed([Both(t.noun.en.plural, str(t.noun.zh)) for t in chosen])
        return [Exchange(asked, Both(f"{_cap(names.en)}.", f"{names.zh}。"))]
    thing = draw.choice(things())
    others = draw.sample(
        [
            t
            for t in things()
            if t.category != thing.category and len([u for u in things() if u.category == t.category]) > 3
        ],
        1,
    )[0]
    same = draw.sample([t for t in things() if t.category == others.category], 3)
    if thing.category.en in (
        "thing in the house",
        "tool",
        "school thing",
        "thing in the kitchen",
    ) or others.category.en in ("thing in the house", "tool", "school thing", "thing in the kitchen"):
        return thing_fact(draw)
    row = [*same, thing]
    draw.shuffle(row)
    shown = Both(", ".join(t.noun.en for t in row), "、".join(t.noun.zh for t in row))
    asked = both(
        draw,
        "Which one does not belong: {l}? / Find the odd one out: {l}.",
        "哪一个和其他的不是一类：{l}？ / 找出不同类的一个：{l}。",
        l=shown,
    )
    plural = others.category_plural
    return [
        Exchange(
            asked,
            Both(
                f"{_cap(str(thing.noun.en))}. The others are {plural}.",
                f"{thing.noun.zh}。其他的都是{others.category.zh}。",
            ),
            Both(str(thing.noun.en), str(thing.noun.zh)),
        )
    ]


def _an(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" and not word.startswith(("uni", "eu")) else f"a {word}"


def _an_again(text: str) -> str:
    return _an(text[2:]) if text.startswith("a ") else text


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]


def _category(thing: Thing) -> Both:
    en = thing.category.en
    return Both(en if en == "food" else _an(en), thing.category.zh)


def _is_a(thing: Thing) -> Both:
    if thing.noun.en == "scissors":
        return Both("Scissors are a thing in the house.", "剪刀是日用品。")
    kind = "a kind of food" if thing.category.en == "food" else _category(thing).en
    return Both(f"{_cap(_an(thing.noun.en))} is {kind}.", f"{thing.noun.zh}是一种{thing.category.zh}。")


def _use(thing: Thing) -> Both:
    assert thing.about is not None
    if thing.noun.en == "scissors":
        return Both("You use scissors to cut paper.", "剪刀是用来剪纸的。")
    return Both(f"You use {_an(thing.noun.en)} {thing.about.en}.", f"{thing.noun.zh}是用来{thing.about.zh}的。")


def job_fact(draw: random.Random) -> list[Exchange]:
    en, zh, does_en, does_zh, where_en, where_zh = draw.choice(table("jobs"))
    job = noun(en, zh, "名")
    kind = draw.choice(["what", "who", "where", "does?", "works?"])
    says = Both(f"{_cap(_an(en))} {does_en}.", f"{zh}的工作是{does_zh}。")
    works = Both(f"{_cap(_an(en))} works {where_en}.", f"{zh}在{where_zh}工作。")
    if kind == "what":
        asked = both(
            draw,
            "What does {n.a} do? / What is the job of {n.a}? / What do {n.plural} do?",
            "{n}是做什么的？ / {n}的工作是什么？ / {n}做什么工作？",
            n=job,
        )
        return [Exchange(asked, says, Both(does_en, does_zh))]
    if kind == "who":
        asked = both(
            draw,
            "Who {d}? / What do you call a person who {d}?",
            "谁{d}？ / {d}的人叫什么？ / 什么人{d}？",
            d=Both(does_en, does_zh),
        )
        return [Exchange(asked, Both(f"{_cap(_an(en))} {does_en}.", f"{zh}{does_zh}。"), Both(_an(en), zh))]
    if kind == "where":
        asked = both(
            draw, "Where does {n.a} work? / Where do {n.plural} work?", "{n}在哪里工作？ / {n}在什么地方上班？", n=job
        )
        return [Exchange(asked, works, Both(where_en, where_zh))]
    other = draw.choice(table("jobs"))
    if kind == "does?":
        asked = both(
            draw,
            ["Is it {n.a} who {d}?", "Is it the job of {n.a} that he or she {d}?"][0],
            "{n}的工作是{d}吗？",
            n=job,
            d=Both(other[2], other[3]),
        )
        return [_yes_no(asked, other[2] == does_en, says)]
    asked = both(
        draw, "Does {n.a} work {w}?", "{n}在{w}工作吗？ / {n}是在{w}上班吗？", n=job, w=Both(other[4], other[5])
    )
    return [_yes_no(asked, other[4] == where_en, works)]


def country_fact(draw: random.Random) -> list[Exchange]:
    country = draw.choice(countries())
    kind = draw.choice(["capital", "capital", "capital", "of which", "continent", "capital?", "continent?", "chain"])
    name, capital, continent = country.name, country.capital, CONTINENTS[country.continent]
    is_capital = Both(f"The capital of {name.en} is {capital.en}.", f"{name.zh}的首都是{capital.zh}。")
    in_continent = Both(
        f"{_cap(name.en)} {'are' if name.en in ('the Maldives',) else 'is'} in {continent.en}.",
        f"{name.zh}在{continent.zh}。",
    )
    if kind in ("capital", "chain"):
        asked = both(
            draw,
            "What is the capital of {n}? / What's the capital of {n}? / Which city is the capital of {n}? / "
            "Tell me the capital of {n}. / What is {n}'s capital? / Name the capital of {n}.",
            "{n}的首都是哪里？ / {n}的首都是什么？ / {n}首都是哪个城市？ / 哪个城市是{n}的首都？ / "
            "请告诉我{n}的首都。 / {n}的首都在哪儿？",
            n=name,
        )
        exchanges = [Exchange(asked, is_capital, capital)]
        while kind == "chain" and draw.random() < 0.7 and len(exchanges) < 4:
            other = draw.choice(countries())
            asked = both(
                draw,
                "And of {n}? / And the capital of {n}? / What about {n}? / And {n}?",
                "那{n}呢？ / {n}的首都呢？ / 那么{n}呢？",
                n=other.name,
            )
            answer = Both(
                f"The capital of {other.name.en} is {other.capital.en}.", f"{other.name.zh}的首都是{other.capital.zh}。"
            )
            exchanges.append(Exchange(asked, answer, other.capital))
        return exchanges
    if kind == "of which":
        asked = both(
            draw,
            "{c} is the capital of which country? / Of which country is {c} the capital? / "
            "Which country has {c} as its capital?",
            "{c}是哪个国家的首都？ / 首都是{c}的国家是哪个？",
            c=capital,
        )
        return [
            Exchange(
                asked, Both(f"{capital.en} is the capital of {name.en}.", f"{capital.zh}是{name.zh}的首都。"), name
            )
        ]
    if kind == "continent":
        asked = both(
            draw,
            "Where is {n}? / On which continent is {n}? / Which continent is {n} in?",
            "{n}在哪个洲？ / {n}在哪里？ / {n}位于哪个大洲？",
            n=name,
        )
        return [Exchange(asked, in_continent, continent)]
    if kind == "capital?":
        other = country if draw.random() < 0.5 else draw.choice(countries())
        asked = both(
            draw,
            "Is {c} the capital of {n}? / Is the capital of {n} {c}?",
            "{c}是{n}的首都吗？ / {n}的首都是{c}吗？",
            c=other.capital,
            n=name,
        )
        yes = other.capital.en == capital.en
        return [
            Exchange(
                asked,
                Both(
                    f"{'Yes' if yes else 'No'}, the capital of {name.en} is {capital.en}.",
                    f"{'是的' if yes else '不是'}，{is_capital.zh}",
                ),
                YES if yes else NO,
            )
        ]
    said = continent if draw.random() < 0.5 else draw.choice(list(CONTINENTS.values()))
    asked = both(draw, "Is {n} in {c}? / Is {n} a country in {c}?", "{n}在{c}吗？ / {n}是{c}的国家吗？", n=name, c=said)
    yes = said == continent
    return [
        Exchange(
            asked,
            Both(
                f"{'Yes' if yes else 'No'}, {name.en} is in {continent.en}.",
                f"{'是的' if yes else '不是'}，{in_continent.zh}",
            ),
            YES if yes else NO,
        )
    ]


def word_fact(draw: random.Random) -> list[Exchange]:
    """Opposites, meanings, plurals and measure words, and words in the other language."""
    kind = draw.choice(
        ["opposite", "opposite", "opposite?", "meaning", "meaning", "which word", "plural", "translate", "translate"]
    )
    if kind in ("opposite", "opposite?"):
        a_en, a_zh, b_en, b_zh = draw.choice(table("opposites"))
        if draw.random() < 0.5 and sum(row[2] == b_en or row[0] == b_en for row in table("opposites")) == 1:
            a_en, a_zh, b_en, b_zh = b_en, b_zh, a_en, a_zh
        truth = Both(f"The opposite of {a_en} is {b_en}.", f"“{a_zh}”的反义词是“{b_zh}”。")
        if kind == "opposite":
            asked = both(
                draw,
                "What is the opposite of {a}? / What is the opposite of the word {a}? / "
                "What's the opposite of {a}? / Which word is the opposite of {a}? / Opposite of {a}?",
                "“{a}”的反义词是什么？ / {a}的反义词是什么？ / 和“{a}”相反的词是什么？ / 写出“{a}”的反义词。",
                a=Both(a_en, a_zh),
            )
            return [Exchange(asked, truth, Both(b_en, b_zh))]
        right = draw.random() < 0.5
        said = (
            Both(b_en, b_zh)
            if right
            else Both(*draw.choice([row[:2] for row in table("opposites") if row[0] not in (a_en, b_en)]))
        )
        if any({a_en, said.en} == {row[0], row[2]} for row in table("opposites")) != right:
            return word_fact(draw)
        asked = both(
            draw,
            "Is {s} the opposite of {a}? / Are {a} and {s} opposites?",
            "“{s}”是“{a}”的反义词吗？ / “{a}”和“{s}”是反义词吗？",
            a=Both(a_en, a_zh),
            s=said,
        )
        return [_yes_no(asked, right, truth)]
    if kind in ("meaning", "which word"):
        en, zh, means_en, means_zh = draw.choice(table("meanings"))
        truth = Both(f"{_cap(_article(en))} is {means_en}.", f"{zh}是{means_zh}。")
        if kind == "meaning":
            asked = both(
                draw,
                "What is {w}? / What does the word {b} mean? / What does {b} mean? / Explain the word {b}. / "
                "Can you explain what {w} is?",
                "{b}是什么？ / “{b}”是什么意思？ / 请解释一下“{b}”。 / 什么是{b}？ / {b}指的是什么？",
                w=Both(_article(en), zh),
                b=Both(en, zh),
            )
            return [Exchange(asked, truth)]
        asked = both(
            draw,
            "What do you call {m}? / What is the word for {m}? / Which word means {m}?",
            "{m}叫什么？ / 哪个词的意思是“{m}”？",
            m=Both(means_en, means_zh),
        )
        return [
            Exchange(
                asked,
                Both(f"{_cap(means_en)} is called {_article(en)}.", f"{means_zh}叫{zh}。"),
                Both(_article(en), zh),
            )
        ]
    nouns = [t.noun for t in things()] + [a.noun for a in animals()]
    word = draw.choice(nouns)
    if kind == "plural":
        asked = both(
            draw,
            "What is the plural of {n}? / What is the plural form of {n}? / One {n}, two what?",
            "“{n}”的量词是什么？ / “{n}”用什么量词？ / 一什么{n}？",
            n=word,
        )
        return [
            Exchange(
                asked,
                Both(
                    f"The plural of {word.en} is {word.en.plural}.",
                    f"“{word.zh}”的量词是“{word.zh.c}”：{word.zh.one}。",
                ),
                Both(word.en.plural, word.zh.c),
            )
        ]
    to_other = both(
        draw,
        "How do you say {n} in Chinese? / What is {n} in Chinese? / What is the Chinese word for {n}? / "
        "Translate {n} into Chinese.",
        "{n}用英语怎么说？ / “{n}”的英文是什么？ / {n}的英语单词是什么？ / 把“{n}”翻译成英语。",
        n=word,
    )
    if draw.random() < 0.5:
        answer = Both(f"{_cap(word.en)} in Chinese is {word.zh}.", f"{word.zh}的英语是{word.en}。")
        return [Exchange(to_other, answer, Both(str(word.zh), str(word.en)))]
    asked = both(
        draw,
        "What does {z} mean? / What does {z} mean in English? / What is {z} in English?",
        "{e}是什么意思？ / {e}用中文怎么说？ / 英语的{e}是什么意思？",
        z=word.zh,
        e=word.en,
    )
    return [
        Exchange(
            asked,
            Both(f"{word.zh} means {word.en}.", f"{word.en}的意思是{word.zh}。"),
            Both(str(word.en), str(word.zh)),
        )
    ]


def _article(word: str) -> str:
    return word if word in ("ice", "honey", "wool", "breakfast", "dinner") else _an(word)


DAYS = [Both(en, f"星期{zh}") for en, zh in zip(tables.DAYS, "一二三四五六日", strict=True)]
MONTHS = [
    Both(en, f"{zh}月")
    for en, zh in zip(
        tables.MONTHS, ["一", "二", "三", "四", "五", "六", "七", "八", "九", "十", "十一", "十二"], strict=True
    )
]
SEASONS = [Both(en, zh) for en, zh in zip(tables.SEASONS, ["春天", "夏天", "秋天", "冬天"], strict=True)]


def calendar_fact(draw: random.Random) -> list[Exchange]:
    names, what = draw.choice(
        [
            (DAYS, Both("day", "一天")),
            (DAYS, Both("day", "一天")),
            (MONTHS, Both("month", "个月")),
            (SEASONS, Both("season", "个季节")),
        ]
    )
    i = draw.randrange(len(names))
    one, after, before = names[i], names[(i + 1) % len(names)], names[i - 1]
    kind = draw.choice(["after", "before", "yes", "list", "number"])
    comes = Both(f"{_cap(after.en)} comes after {one.en}.", f"{one.zh}的后面是{after.zh}。")
    if kind == "after":
        asked = both(
            draw,
            "What {k} comes after {d}? / Which {k} comes after {d}? / Which {k} is after {d}?",
            "{d}的后面是什么？ / {d}之后是哪{k}？ / {d}的下一{k}是什么？",
            d=one,
            k=Both(what.en, what.zh),
        )
        return [Exchange(asked, comes, after)]
    if kind == "before":
        asked = both(
            draw,
            "What {k} comes before {d}? / Which {k} comes before {d}? / Which {k} is before {d}?",
            "{d}的前面是什么？ / {d}之前是哪{k}？ / {d}的上一{k}是什么？",
            d=one,
            k=Both(what.en, what.zh),
        )
        return [
            Exchange(asked, Both(f"{_cap(before.en)} comes before {one.en}.", f"{one.zh}的前面是{before.zh}。"), before)
        ]
    if kind == "yes":
        said = after if draw.random() < 0.5 else draw.choice(names)
        asked = both(draw, "Does {s} come right after {d}?", "{d}的后面是{s}吗？", s=said, d=one)
        return (
            [_yes_no(asked, said == after, Both(comes.en, comes.zh))]
            if names is SEASONS
            else [
                Exchange(
                    asked,
                    Both(
                        f"{'Yes' if said == after else 'No'}, {comes.en}",
                        f"{'是的' if said == after else '不是'}，{comes.zh}",
                    ),
                    YES if said == after else NO,
                )
            ]
        )
    if kind == "list":
        plural = Both(f"{what.en}s", {"day": "一周的七天", "month": "十二个月", "season": "四个季节"}[what.en])
        asked = both(
            draw,
            "Name all the {k}{w}. / List the {k}{w}. / What are the {k}{w}?",
            "说出{k}。 / {k}都是什么？ / 请列出{k}。",
            k=plural,
            w=" of the week" if what.en == "day" else " of the year",
        )
        return [Exchange(asked, Both(f"{_cap(listed(names).en)}.", f"{listed(names).zh}。"))]
    if names is not MONTHS:
        return calendar_fact(draw)
    ordinal = [
        "first",
        "second",
        "third",
        "fourth",
        "fifth",
        "sixth",
        "seventh",
        "eighth",
        "ninth",
        "tenth",
        "eleventh",
        "twelfth",
    ][i]
    asked = both(
        draw,
        "What is the {o} month of the year? / Which month is the {o} of the year?",
        "一年的第{z}个月是几月？",
        o=ordinal,
        z=one.zh[:-1],
    )
    return [
        Exchange(
            asked, Both(f"The {ordinal} month of the year is {one.en}.", f"一年的第{one.zh[:-1]}个月是{one.zh}。"), one
        )
    ]


def general_fact(draw: random.Random) -> list[Exchange]:
    asked_en, asked_zh, answer_en, answer_zh, short_en, short_zh = draw.choice(table("pairs"))
    return [Exchange(Both(asked_en, asked_zh), Both(answer_en, answer_zh), Both(short_en, short_zh))]


KINDS_OF_FACTS: dict[Callable[[random.Random], list[Exchange]], int] = {
    animal_fact: 22,
    thing_fact: 20,
    job_fact: 8,
    country_fact: 16,
    word_fact: 18,
    calendar_fact: 6,
    general_fact: 12,
}


def fact(draw: random.Random) -> list[Exchange]:
    """A fact of any kind."""
    return draw.choices(list(KINDS_OF_FACTS), list(KINDS_OF_FACTS.values()))[0](draw)


def _options(draw: random.Random) -> tuple[Both, Both, Sequence[Both]]:
    """A question, its right answer and answers that are wrong."""
    kind = draw.choice(
        ["capital", "category", "sound", "opposite", "job", "flies", "sum", "young", "colour", "day", "biggest"]
    )
    if kind == "capital":
        right, *wrong = draw.sample(countries(), 8)
        asked = both(
            draw,
            "What is the capital of {n}? / Which city is the capital of {n}?",
            "{n}的首都是哪里？ / {n}的首都是哪个城市？",
            n=right.name,
        )
        return asked, right.capital, [country.capital for country in wrong]
    if kind == "category":
        thing = draw.choice(things())
        wrong_things = draw.sample([t for t in things() if t.category != thing.category], 12)
        asked = both(draw, "Which of these is {c}?", "下面哪个是{c}？ / 哪一个是{c}？", c=_category(thing))
        return (
            asked,
            Both(str(thing.noun.en), str(thing.noun.zh)),
            [Both(str(t.noun.en), str(t.noun.zh)) for t in wrong_things],
        )
    if kind == "sound":
        animal = _animal(draw, lambda a: a.sound is not None)
        wrong_animals = draw.sample(
            [
                a
                for a in animals()
                if a.sound is None or (a.sound.en != animal.sound.en and a.sound.zh != animal.sound.zh)
            ],
            12,
        )
        asked = both(draw, "Which animal says {s}?", "哪种动物{s}叫？", s=animal.sound)
        return (
            asked,
            Both(str(animal.noun.en), str(animal.noun.zh)),
            [Both(str(a.noun.en), str(a.noun.zh)) for a in wrong_animals],
        )
    if kind == "opposite":
        row = draw.choice(table("opposites"))
        wrong_rows = draw.sample(
            [r for r in table("opposites") if r[0] != row[0] and r[2] != row[2] and r[1] != row[1]], 12
        )
        asked = both(
            draw,
            "What is the opposite of {a}? / Which word is the opposite of {a}?",
            "“{a}”的反义词是哪个？ / 哪个词是“{a}”的反义词？",
            a=Both(row[0], row[1]),
        )
        return asked, Both(row[2], row[3]), [Both(r[2], r[3]) for r in wrong_rows]
    if kind == "job":
        row = draw.choice(table("jobs"))
        wrong_rows = draw.sample([r for r in table("jobs") if r[2] != row[2]], 12)
        return (
            both(draw, "Who {d}?", "谁{d}？ / 什么人{d}？", d=Both(row[2], row[3])),
            Both(row[0], row[1]),
            [Both(r[0], r[1]) for r in wrong_rows],
        )
    if kind == "flies":
        can = draw.random() < 0.7
        right_animal = _animal(draw, lambda a: a.flies == can)
        wrong_animals = draw.sample([a for a in animals() if a.flies != can], 12)
        asked = both(
            draw, "Which animal can{no} fly?", "哪种动物{no}会飞？", no=Both("" if can else "not", "" if can else "不")
        )
        return (
            asked,
            Both(str(right_animal.noun.en), str(right_animal.noun.zh)),
            [Both(str(a.noun.en), str(a.noun.zh)) for a in wrong_animals],
        )
    if kind == "sum":
        a, b = draw.randint(1, 12), draw.randint(1, 12)
        near = [n for n in range(max(0, a + b - 5), a + b + 6) if n != a + b]
        draw.shuffle(near)
        return (
            both(draw, "What is {a} + {b}?", "{a} + {b} 等于几？", a=a, b=b),
            Both(str(a + b), str(a + b)),
            [Both(str(n), str(n)) for n in near],
        )
    if kind == "young":
        animal = _animal(draw)
        wrong_animals = draw.sample(
            [a for a in animals() if a.young.en != animal.young.en and a.young.zh != animal.young.zh], 12
        )
        asked = both(draw, "What is a baby {n} called?", "{n}的宝宝叫什么？", n=animal.noun)
        return asked, animal.young, [a.young for a in wrong_animals]
    if kind == "colour":
        en, zh, colour = draw.choice(table("coloured"))
        right_colour = colour_named(colour)
        wrong_colours = [c for c in colours() if c != right_colour]
        draw.shuffle(wrong_colours)
        asked = both(
            draw,
            "What colour {i} {w}?",
            "{w}是什么颜色的？",
            w=Both(en, zh),
            i="are" if en.startswith("leaves") else "is",
        )
        return asked, right_colour, wrong_colours
    if kind == "day":
        i = draw.randrange(7)
        wrong_days = [d for d in DAYS if d not in (DAYS[i], DAYS[(i + 1) % 7])]
        draw.shuffle(wrong_days)
        return both(draw, "Which day comes after {d}?", "{d}的后面是哪一天？", d=DAYS[i]), DAYS[(i + 1) % 7], wrong_days
    right_animal = _animal(draw, lambda a: a.size > 5)
    wrong_animals = draw.sample([a for a in animals() if a.size < right_animal.size - 1], 6)
    asked = both(draw, "Which animal is the biggest?", "哪种动物最大？")
    return (
        asked,
        Both(str(right_animal.noun.en), str(right_animal.noun.zh)),
        [Both(str(a.noun.en), str(a.noun.zh)) for a in wrong_animals],
    )


def choice(draw: random.Random) -> list[Exchange]:
    """A question with four answers to choose from, in several layouts."""
    asked, right, wrong = _options(draw)
    options: list[Both] = [right]
    for option in wrong:
        if all(option.en != o.en and option.zh != o.zh for o in options):
            options.append(option)
        if len(options) == 4:
            break
    draw.shuffle(options)
    at = options.index(right)
    letter = "ABCD"[at]
    mark = draw.choice(["{}. ", "{}) ", "({}) "])
    lines = [Both(mark.format("ABCD"[i]) + o.en, mark.format("ABCD"[i]) + o.zh) for i, o in enumerate(options)]
    listed_en, listed_zh = "\n".join(o.en for o in lines), "\n".join(o.zh for o in lines)
    if draw.random() < 0.5:
        end = both(
            draw,
            "\nAnswer: / \nWhich letter is right? / \nGive only the letter.",
            "\n答案： / \n请选出正确的字母。 / \n只写字母。",
        )
        return [
            Exchange(Both(f"{asked.en}\n{listed_en}{end.en}", f"{asked.zh}\n{listed_zh}{end.zh}"), Both(letter, letter))
        ]
    return [
        Exchange(
            Both(f"{asked.en}\n{listed_en}", f"{asked.zh}\n{listed_zh}"),
            Both(f"{letter}. {_cap(right.en)}.", f"{letter}. {right.zh}。"),
        )
    ]
