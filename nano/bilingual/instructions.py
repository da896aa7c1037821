"""Small tasks: translate a sentence, repeat, answer in the other language, finish a list, make a sentence."""

from __future__ import annotations

import random

from bilingual.facts import fact
from bilingual.language import Both, Exchange, both, count_zh, number_en
from bilingual.reading import CONTAINERS, PORTABLE
from bilingual.stories import PLACES, SKILLS
from bilingual.words import Person, animals, colours, listed, person, things

TIMES = [
    Both("today", "今天"),
    Both("every day", "每天"),
    Both("in the morning", "早上"),
    Both("in the evening", "晚上"),
]
ADJECTIVES = [
    Both("beautiful", "漂亮"),
    Both("big", "大"),
    Both("small", "小"),
    Both("old", "旧"),
    Both("new", "新"),
    Both("clean", "干净"),
    Both("heavy", "重"),
    Both("light", "轻"),
]
PHRASES = [
    Both("Good morning!", "早上好！"),
    Both("Good evening!", "晚上好！"),
    Both("Good night!", "晚安！"),
    Both("Thank you very much.", "非常感谢。"),
    Both("You are welcome.", "不客气。"),
    Both("I am sorry.", "对不起。"),
    Both("It does not matter.", "没关系。"),
    Both("How are you?", "你好吗？"),
    Both("I am fine.", "我很好。"),
    Both("What is your name?", "你叫什么名字？"),
    Both("Where are you from?", "你是哪里人？"),
    Both("See you tomorrow.", "明天见。"),
    Both("Happy birthday!", "生日快乐！"),
    Both("Happy New Year!", "新年快乐！"),
    Both("I do not understand.", "我不明白。"),
    Both("Please help me.", "请帮帮我。"),
    Both("It is raining.", "下雨了。"),
    Both("I am hungry.", "我饿了。"),
    Both("I am tired.", "我累了。"),
    Both("I love you.", "我爱你。"),
    Both("How much is it?", "这个多少钱？"),
    Both("Where is the station?", "车站在哪里？"),
    Both("What time is it?", "现在几点？"),
    Both("Nice to meet you.", "很高兴认识你。"),
    Both("Have a good trip!", "一路平安！"),
    Both("Be careful!", "小心！"),
    Both("Wait a moment, please.", "请等一下。"),
    Both("Let us go!", "我们走吧！"),
]


def _translated_person(draw: random.Random, other_than: tuple[Person, ...] = ()) -> Person:
    """Somebody whose name can be translated."""
    while (found := person(draw, other_than)).is_arbitrary:
        pass
    return found


def sentence(draw: random.Random) -> Both:
    """A simple sentence in both languages."""
    who = _translated_person(draw)
    noun = draw.choice([t.noun for t in things() if t.noun.en != "scissors"])
    animal = draw.choice(animals()).noun
    place = draw.choice(PLACES)
    at, to = Both(place[1], place[4]), Both(place[2], place[3])
    kind = draw.randrange(13)
    if kind == 0:
        container, prep, zh_prep = draw.choice(CONTAINERS)
        return both(
            draw, "The {t} is {p} the {c}.", "{t}在{c}{z}。", t=draw.choice(PORTABLE), p=prep, c=container, z=zh_prep
        )
    if kind == 1:
        fruit = draw.choice([t.noun for t in things() if t.category.en == "fruit"])
        return both(draw, "{n} likes {f.plural}.", "{n}喜欢吃{f}。", n=who.name, f=fruit)
    if kind == 2:
        return both(draw, "{n} goes {to} {t}.", "{n}{t}去{to}。", n=who.name, to=to, t=draw.choice(TIMES))
    if kind == 3:
        return both(draw, "I have {t}.", "我有{t}。", t=noun.some_in_words(draw.randint(2, 10)))
    if kind == 4:
        return both(draw, "The {a} is {at}.", "{a}在{at}。", a=animal, at=at)
    if kind == 5:
        return both(draw, "This {t} is {c}.", "这{m}{t}是{c}的。", t=noun, m=noun.zh.c, c=draw.choice(colours()))
    if kind == 6:
        thing = draw.choice(PORTABLE)
        return both(draw, "The {t} is very {a}.", "这{c}{t}很{a}。", t=thing, c=thing.zh.c, a=draw.choice(ADJECTIVES))
    if kind == 7:
        skill = draw.choice(SKILLS)
        return both(draw, "{n} can {s}.", "{n}会{s}。", n=who.name, s=Both(*skill))
    if kind == 8:
        return draw.choice(PHRASES)
    if kind == 9:
        container, prep, zh_prep = draw.choice(CONTAINERS)
        n = draw.randint(2, 9)
        thing = draw.choice(PORTABLE)
        return Both(
            f"There are {number_en(n)} {thing.en.plural} {prep} the {container.en}.",
            f"{container.zh}{zh_prep}有{count_zh(n)}{thing.zh.c}{thing.zh}。",
        )
    if kind == 10:
        friend = _translated_person(draw, (who,))
        return both(draw, "{a} and {b} are good friends.", "{a}和{b}是好朋友。", a=who.name, b=friend.name)
    if kind == 11:
        return both(draw, "My friend is called {n}.", "我的朋友叫{n}。", n=who.name)
    return both(draw, "I see {t.a} {at}.", "我在{at}看见一{m}{t}。", t=animal, at=at, m=animal.zh.c)


def translation(draw: random.Random) -> list[Exchange]:
    """A sentence for the other language. English users translate into Chinese half the time, and the reverse."""
    said = sentence(draw)
    if draw.random() < 0.5:
        asked = Both(
            draw.choice(
                [
                    "Translate into Chinese: {}",
                    "Translate to Chinese: {}",
                    "How do you say this in Chinese: {}",
                    "Say it in Chinese: {}",
                    "In Chinese, please: {}",
                ]
            ).format(said.en),
            draw.choice(["翻译成英语：{}", "把这句话翻译成英文：{}", "用英语怎么说：{}", "请译成英语：{}"]).format(
                said.zh
            ),
        )
        return [Exchange(asked, Both(said.zh, said.en))]
    asked = Both(
        draw.choice(
            ["Translate into English: {}", "What does this mean in English: {}", "Translate to English: {}"]
        ).format(said.zh),
        draw.choice(["翻译成中文：{}", "把这句话翻译成汉语：{}", "这句话是什么意思：{}", "请译成中文：{}"]).format(
            said.en
        ),
    )
    return [Exchange(asked, said)]


def other_language(draw: random.Random) -> list[Exchange]:
    """A question that is to be answered in the other language."""
    exchange = fact(draw)[0]
    en = draw.choice(["{} Answer in Chinese.", "{} Please answer in Chinese.", "Answer in Chinese: {}"]).format(
        exchange.asked.en
    )
    zh = draw.choice(["{}请用英语回答。", "用英文回答：{}", "{}用英语回答我。"]).format(exchange.asked.zh)
    return [Exchange(Both(en, zh), Both(exchange.answer.zh, exchange.answer.en))]


def repeat(draw: random.Random) -> list[Exchange]:
    """Text or words that are to be repeated as they are."""
    if draw.random() < 0.5:
        said = sentence(draw)
        asked = both(
            draw,
            "Repeat: {s} / Say this again: {s} / Repeat this sentence: {s} / Write this sentence once more: {s}",
            "重复：{s} / 请跟我说：{s} / 重复这句话：{s} / 把这句话再写一遍：{s}",
            s=said,
        )
        return [Exchange(asked, said)]
    noun = draw.choice([t.noun for t in things()] + [a.noun for a in animals()])
    n = draw.randint(2, 6)
    asked = both(
        draw,
        'Say "{w}" {n} times. / Write the word {w} {n} times. / Repeat the word {w} {n} times.',
        "把“{w}”说{m}遍。 / 把“{w}”写{m}遍。 / 重复{m}遍“{w}”。",
        w=noun,
        n=number_en(n),
        m=count_zh(n),
    )
    return [Exchange(asked, Both(f"{', '.join([noun.en] * n)}.", f"{'、'.join([noun.zh] * n)}。"))]


def make_sentence(draw: random.Random) -> list[Exchange]:
    """A sentence with a given word."""
    animal = draw.choice(animals()).noun
    thing = draw.choice(PORTABLE)
    place = draw.choice(PLACES)
    who = person(draw)
    word = animal if draw.random() < 0.5 else thing
    if word is animal:
        made = both(
            draw,
            "The {w} is sleeping {at}. / I saw a {w} {at} today. / {n} drew a picture of a {w}.",
            "一{m}{w}正在{at}睡觉。 / 今天我在{at}看见了一{m}{w}。 / {n}画了一{m}{w}。",
            w=word,
            at=Both(place[1], place[4]),
            n=who.name,
            m=animal.zh.c,
        )
    else:
        made = both(
            draw,
            "{n} has a new {w}. / My {w} is at home. / {n} bought a {w} yesterday.",
            "{n}有一{m}新{w}。 / 我的{w}在家里。 / {n}昨天买了一{m}{w}。",
            w=word,
            n=who.name,
            m=thing.zh.c,
        )
    asked = both(
        draw,
        'Make a sentence with the word "{w}". / Use the word {w} in a sentence. / Write a sentence with {w}.',
        "用“{w}”造句。 / 请用“{w}”写一个句子。 / 造一个句子，用上“{w}”。",
        w=word,
    )
    return [Exchange(asked, made)]


def describe(draw: random.Random) -> list[Exchange]:
    """An animal in three sentences, all from the table."""
    from bilingual.facts import _eats, _is_kind, _legs, _lives  # the sentences of the facts

    animal = draw.choice([a for a in animals() if a.noun.en not in ("fish", "bat")])
    sentences = [_is_kind(animal), _legs(animal), _lives(animal), _eats(animal)]
    if animal.sound:
        sentences.append(Both(f"It says {animal.sound.en}.", f"它{animal.sound.zh}叫。"))
    chosen = [sentences[0], *draw.sample(sentences[1:], draw.choice([2, 3]))]
    n = animal.noun.en
    en = " ".join([chosen[0].en] + [s.en.replace(f"A {n} ", "It ").replace(f"An {n} ", "It ") for s in chosen[1:]])
    zh = chosen[0].zh + "".join(
        s.zh.replace(f"{animal.noun.zh}", "它", 1) if s.zh.startswith(animal.noun.zh) else s.zh for s in chosen[1:]
    )
    asked = both(
        draw,
        "Tell me about {n.plural}. / Describe {n.a}. / What do you know about {n.plural}? / "
        "Tell me something about the {n}.",
        "介绍一下{n}。 / 说说{n}。 / 你知道{n}吗？给我讲讲。 / 关于{n}，你知道什么？",
        n=animal.noun,
    )
    return [Exchange(asked, Both(en, zh))]


def shopping(draw: random.Random) -> list[Exchange]:
    """A list that is asked back: how many items, which is the first, is something on it."""
    items = draw.sample(
        [t.noun for t in things() if t.is_edible or t.category.en in ("toy", "school thing")], draw.randint(3, 5)
    )
    shown = listed([Both(str(item.en), str(item.zh)) for item in items])
    kind = draw.choice(["how many", "first", "last", "on it", "missing"])
    line = both(
        draw, "My list: {l}. / I have to buy these things: {l}.", "我的清单：{l}。 / 我要买这些东西：{l}。", l=shown
    )
    if kind == "how many":
        question = both(draw, "How many things are on my list?", "清单上有几样东西？")
        answer = Both(
            f"There are {number_en(len(items))} things on your list.", f"清单上有{count_zh(len(items))}样东西。"
        )
        short = Both(number_en(len(items)), f"{count_zh(len(items))}样")
    elif kind in ("first", "last"):
        item = items[0 if kind == "first" else -1]
        question = both(
            draw,
            f"What is the {kind} thing on my list?",
            f"清单上{'第一样' if kind == 'first' else '最后一样'}东西是什么？",
        )
        answer = Both(
            f"The {kind} thing on your list is {item.en}.",
            f"{'第一样' if kind == 'first' else '最后一样'}是{item.zh}。",
        )
        short = Both(str(item.en), str(item.zh))
    else:
        other = (
            draw.choice(items) if kind == "on it" else draw.choice([t.noun for t in things() if t.noun not in items])
        )
        yes = kind == "on it"
        question = both(draw, "Is {i} on my list?", "清单上有{i}吗？", i=Both(str(other.en), str(other.zh)))
        answer = Both(
            f"{'Yes' if yes else 'No'}, {other.en} is {'' if yes else 'not '}on your list.",
            f"{'有' if yes else '没有'}，清单上{'有' if yes else '没有'}{other.zh}。",
        )
        short = Both("yes" if yes else "no", "有" if yes else "没有")
    return [Exchange(Both(f"{line.en} {question.en}", f"{line.zh}{question.zh}"), answer, short)]


KINDS_OF_TASKS = {translation: 34, other_language: 10, repeat: 14, make_sentence: 12, describe: 16, shopping: 14}


def task(draw: random.Random) -> list[Exchange]:
    """A small task of any kind."""
    return draw.choices(list(KINDS_OF_TASKS), list(KINDS_OF_TASKS.values()))[0](draw)
