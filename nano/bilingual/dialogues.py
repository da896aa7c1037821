"""How people type, and conversations of several turns that remember what was said before."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace

from bilingual.facts import choice, fact
from bilingual.instructions import task
from bilingual.language import QUESTION_EN, QUESTION_ZH, Both, Exchange, both
from bilingual.numbers import arithmetic, comparison, counting, easy_sum, spelling, word_problem
from bilingual.reading import PORTABLE, small_world
from bilingual.stories import PLACES, asked_for
from bilingual.talk import starting, talk
from bilingual.words import animals, colours, countries, person, pet_name, pets, table, things

BEFORE_QUESTION_EN = [
    "Please tell me: ",
    "I have a question: ",
    "Can you tell me: ",
    "Tell me, ",
    "Excuse me, ",
    "Hi! ",
    "Hello! ",
    "Quick question: ",
    "OK, ",
    "So, ",
]
BEFORE_ORDER_EN = ["Please ", "Can you ", "Could you ", "Hi! ", "Now "]
BEFORE_ZH = [
    "请问，",
    "你好，",
    "我想问一下，",
    "请问",
    "问一下，",
    "那么，",
    "你知道吗，",
    "帮个忙，",
    "对了，",
    "麻烦问一下，",
]
ORDERS_EN = [
    "tell",
    "say",
    "write",
    "name",
    "list",
    "spell",
    "count",
    "repeat",
    "make",
    "give",
    "add",
    "sort",
    "put",
    "translate",
    "find",
    "describe",
    "explain",
    "calculate",
    "show",
]
SHORT = (
    "Give a short answer. / Only the answer, please. / Keep it short. / Just the answer.",
    "请简短回答。 / 只说答案。 / 只要答案。 / 简单回答就行。",
)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def shortened(exchange: Exchange, draw: random.Random) -> Exchange:
    """The same question with the request for a short answer, where there is one."""
    if exchange.short is None:
        return exchange
    wish = both(draw, *SHORT)
    asked = Both(f"{exchange.asked.en} {wish.en}", f"{exchange.asked.zh}{wish.zh}")
    return replace(exchange, asked=asked, answer=Both(_capital(f"{exchange.short.en}."), f"{exchange.short.zh}。"))


def typed(prompt: str, language: str, draw: random.Random) -> str:
    """The prompt as another person might type it: polite, careless, or with a slip."""
    if "\n" in prompt or len(prompt) > 160:
        return prompt
    return _typed_en(prompt, draw) if language == "en" else _typed_zh(prompt, draw)


def _typed_en(prompt: str, draw: random.Random) -> str:
    first = prompt.split()[0].lower().strip(",.!?")
    is_question, is_order = first in QUESTION_EN and prompt.endswith("?"), first in ORDERS_EN
    chance = draw.random()
    if is_question and chance < 0.12 and len(prompt) < 70:
        before = draw.choice(BEFORE_QUESTION_EN)
        lower = prompt[0].lower() + prompt[1:]
        prompt = before + (prompt if before[-2] in "!" else lower)
    elif is_order and chance < 0.2:
        before = draw.choice(BEFORE_ORDER_EN)
        prompt = before + (prompt if before == "Hi! " else prompt[0].lower() + prompt[1:])
        if before in ("Can you ", "Could you "):
            prompt = prompt.rstrip(".") + "?"
    elif (is_question or is_order) and chance < 0.26 and prompt[-1] in ".?":
        prompt = f"{prompt[:-1]}, please{prompt[-1]}"
    chance = draw.random()
    if chance < 0.14:
        prompt = prompt.lower()
    if draw.random() < 0.14 and prompt[-1] in ".?!":
        prompt = prompt[:-1]
    if draw.random() < 0.02:
        prompt = _slip(prompt, draw)
    return prompt


def _slip(prompt: str, draw: random.Random) -> str:
    """Two letters of a longer word change places."""
    words = list(re.finditer(r"[a-z]{5,}", prompt))
    if not words:
        return prompt
    start = draw.choice(words).start() + draw.randint(1, 2)
    return prompt[:start] + prompt[start + 1] + prompt[start] + prompt[start + 2 :]


def _typed_zh(prompt: str, draw: random.Random) -> str:
    is_question = prompt.endswith("？") and any(word in prompt for word in QUESTION_ZH)
    if is_question and len(prompt) < 30 and draw.random() < 0.14:
        prompt = draw.choice(BEFORE_ZH) + prompt
    if draw.random() < 0.16 and prompt[-1] in "。？！":
        prompt = prompt[:-1]
    elif is_question and draw.random() < 0.05 and prompt[-2] not in "吗呢":
        prompt = f"{prompt[:-1]}呢？" if prompt[-2] not in "吧呀" else prompt
    if draw.random() < 0.05:
        prompt = prompt.replace("？", "?").replace("，", ",")
    return prompt


# --- What is remembered: what the user says, what is answered, and the question that comes later.


Memory = tuple[Exchange, list[Exchange]]


def _memory_of_name(draw: random.Random) -> Memory:
    name = person(draw).name
    said = both(
        draw,
        "My name is {n}. / I am {n}. / I'm {n}. / Hello, my name is {n}. / Hi, I am {n}. / You can call me {n}.",
        "我叫{n}。 / 我是{n}。 / 我的名字是{n}。 / 你好，我叫{n}。 / 你可以叫我{n}。 / 叫我{n}就行。",
        n=name,
    )
    answer = both(
        draw,
        "Nice to meet you, {n}! / Hello, {n}! Nice to meet you. / Hello {n}! How can I help you?",
        "很高兴认识你，{n}！ / 你好，{n}！很高兴认识你。 / 你好{n}！有什么可以帮你的？",
        n=name,
    )
    asked = both(
        draw,
        "What is my name? / Do you remember my name? / Do you still know my name? / Who am I? / What am I called?",
        "我叫什么名字？ / 你还记得我叫什么吗？ / 我是谁？ / 我的名字是什么？ / 你记得我的名字吗？",
        n=name,
    )
    return Exchange(said, answer), [
        Exchange(asked, both(draw, "Your name is {n}. / You are {n}.", "你叫{n}。 / 你的名字是{n}。", n=name), name)
    ]


def _memory_of_corrected_name(draw: random.Random) -> Memory:
    (said, later) = _memory_of_name(draw)
    name = person(draw).name
    correction = both(
        draw,
        "Sorry, my name is {n}. / No, I am called {n}. / I was joking. My name is {n}.",
        "不对，我叫{n}。 / 说错了，我叫{n}。 / 我开玩笑的，我叫{n}。",
        n=name,
    )
    answer = both(draw, "All right, {n}! / Thank you. Then you are {n}.", "好的，{n}！ / 明白了，你叫{n}。", n=name)
    asked = later[0].asked
    return said, [
        Exchange(correction, answer),
        Exchange(asked, both(draw, "Your name is {n}.", "你叫{n}。", n=name), name),
    ]


def _memory_of_favourite(draw: random.Random) -> Memory:
    kind, value = draw.choice(
        [
            (Both("colour", "颜色"), draw.choice(colours())),
            (Both("animal", "动物"), _noun(draw.choice(animals()).noun)),
            (Both("fruit", "水果"), _noun(draw.choice([t.noun for t in things() if t.category.en == "fruit"]))),
            (
                Both("season", "季节"),
                draw.choice(
                    [Both("spring", "春天"), Both("summer", "夏天"), Both("autumn", "秋天"), Both("winter", "冬天")]
                ),
            ),
            (Both("toy", "玩具"), _noun(draw.choice([t.noun for t in things() if t.category.en == "toy"]))),
        ]
    )
    said = both(
        draw,
        "My favourite {k} is {v}." if kind.en in ("colour", "season") else "My favourite {k} is the {v}.",
        "我最喜欢的{k}是{v}。",
        k=kind,
        v=value,
    )
    answer = both(
        draw, "That is a good choice. / I will remember that. / How nice!", "不错的选择。 / 我记住了。 / 真好！"
    )
    asked = both(
        draw,
        "What is my favourite {k}? / Do you remember my favourite {k}? / Which {k} do I like best?",
        "我最喜欢的{k}是什么？ / 你记得我最喜欢什么{k}吗？ / 我最喜欢哪种{k}？",
        k=kind,
    )
    tells = both(
        draw,
        "Your favourite {k} is {v}." if kind.en in ("colour", "season") else "Your favourite {k} is the {v}.",
        "你最喜欢的{k}是{v}。",
        k=kind,
        v=value,
    )
    return Exchange(said, answer), [Exchange(asked, tells, value)]


def _noun(noun: object) -> Both:
    return Both(str(noun.en), str(noun.zh))  # type: ignore[attr-defined]


def _memory_of_pet(draw: random.Random) -> Memory:
    pet, name = draw.choice(pets()).noun, pet_name(draw)
    said = both(
        draw,
        "I have a {a} called {n}. / My {a} is called {n}. / The name of my {a} is {n}.",
        "我有一{c}{a}，叫{n}。 / 我的{a}叫{n}。 / 我养了一{c}{a}，名字叫{n}。",
        a=pet,
        n=name,
        c=pet.zh.c,
    )
    answer = both(
        draw,
        "{n} is a nice name for a {a}. / How nice! I am sure {n} is a lovely {a}.",
        "{n}这个名字真好听。 / 真好！{n}一定很可爱。",
        a=pet,
        n=name,
    )
    asked = both(
        draw,
        "What is my {a} called? / What is the name of my {a}? / Do you remember the name of my {a}?",
        "我的{a}叫什么？ / 我的{a}叫什么名字？ / 你记得我的{a}的名字吗？",
        a=pet,
    )
    return Exchange(said, answer), [
        Exchange(asked, both(draw, "Your {a} is called {n}.", "你的{a}叫{n}。", a=pet, n=name), name)
    ]


def _memory_of_age(draw: random.Random) -> Memory:
    age = draw.randint(4, 80)
    said = both(draw, "I am {n} years old. / I'm {n} years old.", "我今年{n}岁。 / 我{n}岁了。", n=age)
    answer = both(
        draw,
        "Thank you for telling me. / I will remember that you are {n}.",
        "谢谢你告诉我。 / 我记住了，你{n}岁。",
        n=age,
    )
    asked = both(
        draw,
        "How old am I? / Do you remember how old I am? / What is my age?",
        "我几岁了？ / 我多大了？ / 你记得我几岁吗？",
    )
    later = [Exchange(asked, both(draw, "You are {n} years old.", "你{n}岁。", n=age), Both(str(age), f"{age}岁"))]
    if draw.random() < 0.4:
        asked = both(draw, "How old will I be next year?", "明年我几岁？")
        later.append(
            Exchange(
                asked,
                both(draw, "Next year you will be {n} years old.", "明年你{n}岁。", n=age + 1),
                Both(str(age + 1), f"{age + 1}岁"),
            )
        )
    return Exchange(said, answer), later


def _memory_of_city(draw: random.Random) -> Memory:
    city = draw.choice(countries()).capital
    said = both(
        draw, "I live in {c}. / I come from {c}. / I am from {c}.", "我住在{c}。 / 我来自{c}。 / 我是{c}人。", c=city
    )
    lives = said.en.startswith("I live")
    answer = both(
        draw,
        "{c} must be an interesting city. / I would like to hear about {c}.",
        "{c}一定很有意思。 / 真想听你讲讲{c}。",
        c=city,
    )
    asked = both(
        draw,
        "Where do I live? / In which city do I live?" if lives else "Where do I come from? / Where am I from?",
        "我是哪里人？ / 我是从哪里来的？" if "住" not in said.zh else "我住在哪里？ / 我住在哪个城市？",
    )
    tells = both(
        draw,
        "You live in {c}." if lives else "You come from {c}.",
        "你住在{c}。" if "住" in said.zh else "你来自{c}。",
        c=city,
    )
    return Exchange(said, answer), [Exchange(asked, tells, city)]


def _memory_of_thing(draw: random.Random) -> Memory:
    thing, colour = draw.choice(PORTABLE), draw.choice(colours())
    said = both(
        draw,
        "I bought a {c} {t} today. / Today I got a {c} {t}. / I have a {c} {t}.",
        "我今天买了一{m}{c}的{t}。 / 我今天得到一{m}{c}的{t}。 / 我有一{m}{c}的{t}。",
        t=thing,
        c=colour,
        m=thing.zh.c,
    )
    answer = both(
        draw, "A {c} {t}, how nice! / I am happy for you.", "{c}的{t}，真好看！ / 真为你高兴。", t=thing, c=colour
    )
    if draw.random() < 0.5:
        asked = both(draw, "What colour is my {t}? / Which colour does my {t} have?", "我的{t}是什么颜色的？", t=thing)
        return Exchange(said, answer), [
            Exchange(asked, both(draw, "Your {t} is {c}.", "你的{t}是{c}的。", t=thing, c=colour), colour)
        ]
    asked = both(draw, ["What did I tell you about?", "What do I have that is new?"][1], "我有什么新东西？")
    return Exchange(said, answer), [
        Exchange(
            asked,
            both(draw, "You have a {c} {t}.", "你有一{m}{c}的{t}。", t=thing, c=colour, m=thing.zh.c),
            _noun(thing),
        )
    ]


def _memory_of_plan(draw: random.Random) -> Memory:
    place = draw.choice(PLACES)
    to = Both(place[2], place[3])
    day = draw.choice(
        [
            Both("tomorrow", "明天"),
            Both("on Sunday", "星期天"),
            Both("this afternoon", "今天下午"),
            Both("on Saturday", "星期六"),
        ]
    )
    said = both(draw, "I am going {to} {d}. / I will go {to} {d}.", "我{d}要去{to}。 / {d}我要去{to}。", to=to, d=day)
    answer = both(draw, "That sounds nice. Have fun! / Have a good time!", "听起来不错，玩得开心！ / 祝你玩得愉快！")
    if draw.random() < 0.6:
        asked = both(draw, "Where am I going {d}?", "我{d}要去哪里？ / {d}我去哪儿？", d=day)
        return Exchange(said, answer), [
            Exchange(asked, both(draw, "You are going {to} {d}.", "你{d}要去{to}。", to=to, d=day), to)
        ]
    asked = both(draw, "When am I going {to}?", "我什么时候去{to}？", to=to)
    return Exchange(said, answer), [
        Exchange(asked, both(draw, "You are going {to} {d}.", "你{d}要去{to}。", to=to, d=day), day)
    ]


def _memory_of_number(draw: random.Random) -> Memory:
    if draw.random() < 0.5:
        value = Both(*[str(draw.randint(10, 9999))] * 2)
        what = Both("number", "数字")
    else:
        value = _noun(draw.choice(PORTABLE))
        what = Both("word", "词")
    said = both(
        draw,
        "Remember the {w} {v}. / Please remember this {w}: {v}. / Keep the {w} {v} in mind.",
        "记住这个{w}：{v}。 / 请记住{w}{v}。 / 帮我记一下这个{w}：{v}。",
        w=what,
        v=value,
    )
    answer = both(draw, "All right, I will remember {v}. / Okay: {v}.", "好的，我记住了：{v}。 / 好，{v}。", v=value)
    asked = both(
        draw,
        "Which {w} did I tell you? / What was the {w} that I told you? / Tell me the {w} again.",
        "我让你记的{w}是什么？ / 刚才的{w}是什么？ / 再说一遍那个{w}。",
        w=what,
    )
    return Exchange(said, answer), [
        Exchange(
            asked,
            both(
                draw,
                "The {w} was {v}. / You told me the {w} {v}.",
                "{w}是{v}。 / 你让我记的{w}是{v}。",
                w=what,
                v=value,
            ),
            value,
        )
    ]


def _memory_of_job(draw: random.Random) -> Memory:
    row = draw.choice(table("jobs"))
    job = Both(row[0], row[1])
    said = both(draw, "I am a {j}. / I work as a {j}.", "我是一名{j}。 / 我的工作是{j}。", j=job)
    answer = both(
        draw, "That is an important job. / Thank you for your work!", "这是很重要的工作。 / 辛苦了，谢谢你的付出！"
    )
    asked = both(
        draw,
        "What is my job? / What do I do for a living? / What do I work as?",
        "我是做什么工作的？ / 我的职业是什么？ / 我做什么工作？",
    )
    return Exchange(said, answer), [Exchange(asked, both(draw, "You are a {j}.", "你是一名{j}。", j=job), job)]


def _memory_of_friend(draw: random.Random) -> Memory:
    who = draw.choice(
        [
            Both("best friend", "最好的朋友"),
            Both("brother", "哥哥"),
            Both("sister", "妹妹"),
            Both("teacher", "老师"),
            Both("neighbour", "邻居"),
        ]
    )
    found = person(draw)
    while found.gender == {"brother": "f", "sister": "m"}.get(who.en):
        found = person(draw)
    name = found.name
    said = both(
        draw, "My {w} is called {n}. / The name of my {w} is {n}.", "我{w}叫{n}。 / 我{w}的名字是{n}。", w=who, n=name
    )
    answer = both(
        draw, "{n} is a nice name. / Please say hello to {n} from me.", "{n}，真好听的名字。 / 替我向{n}问好。", n=name
    )
    asked = both(
        draw, "What is my {w} called? / What is the name of my {w}?", "我{w}叫什么？ / 我{w}叫什么名字？", w=who
    )
    return Exchange(said, answer), [
        Exchange(asked, both(draw, "Your {w} is called {n}.", "你{w}叫{n}。", w=who, n=name), name)
    ]


MEMORIES: tuple[Callable[[random.Random], Memory], ...] = (
    _memory_of_name,
    _memory_of_name,
    _memory_of_corrected_name,
    _memory_of_favourite,
    _memory_of_favourite,
    _memory_of_pet,
    _memory_of_age,
    _memory_of_city,
    _memory_of_thing,
    _memory_of_plan,
    _memory_of_number,
    _memory_of_job,
    _memory_of_friend,
)
ABOUT_NAME = (_memory_of_name, _memory_of_corrected_name)


def _looking_back(turns: list[Exchange], draw: random.Random) -> Exchange | None:
    """A question about the conversation itself, if one turn of it is short enough to be quoted."""
    last, first = turns[-1], turns[0]
    if max(len(last.asked.en), len(last.answer.en)) > 120 or "\n" in last.asked.en + last.answer.en:
        return None
    kind = draw.choice(["again", "asked", "first", "sure"])
    if kind == "again":
        return Exchange(
            both(
                draw,
                "Say that again, please. / Can you repeat that? / What did you say?",
                "请再说一遍。 / 你能重复一下吗？ / 你刚才说什么？",
            ),
            last.answer,
        )
    if kind == "asked":
        last.facts["as_is"] = True  # it is quoted as it stands
        asked = both(draw, "What did I just say? / What was my last message?", "我刚才说了什么？ / 我上一句话是什么？")
        return Exchange(asked, both(draw, 'You said: "{s}"', "你说：“{s}”", s=last.asked))
    if kind == "first" and len(turns) > 1 and len(first.asked.en) < 100 and "\n" not in first.asked.en:
        first.facts["as_is"] = True
        asked = both(
            draw,
            "What was the first thing that I said? / How did our conversation begin?",
            "我说的第一句话是什么？ / 我们的对话是怎么开始的？",
        )
        return Exchange(asked, both(draw, 'You said: "{s}"', "你说：“{s}”", s=first.asked))
    if kind == "sure" and last.facts.get("is_fact"):
        return Exchange(
            both(draw, "Are you sure? / Really? / Is that right?", "你确定吗？ / 真的吗？ / 是这样吗？"),
            Both(f"Yes. {last.answer.en}", f"是的。{last.answer.zh}"),
        )
    return None


def _sums_in_a_row(draw: random.Random) -> list[Exchange]:
    """A sum, and others that continue from its result."""
    a, b, sign, result = easy_sum(draw, 20)
    word = Both("plus" if sign == "+" else "minus", "加" if sign == "+" else "减")
    asked = both(draw, "What is {a} {w} {b}?", "{a}{w}{b}等于几？", a=a, b=b, w=word)
    turns = [Exchange(asked, Both(f"{a} {word.en} {b} is {result}.", f"{a}{word.zh}{b}等于{result}。"))]
    for _ in range(draw.randint(1, 3)):
        n = draw.randint(1, 10)
        plus = result - n < 0 or (draw.random() < 0.6 and result + n <= 40)
        word = Both("plus" if plus else "minus", "加" if plus else "减")
        after = result + n if plus else result - n
        asked = both(
            draw, "And {w} {n}? / Now {w} {n}. / {w} {n}?", "再{w}{n}呢？ / 再{w}{n}。 / {w}{n}呢？", w=word, n=n
        )
        turns.append(Exchange(asked, Both(f"{result} {word.en} {n} is {after}.", f"{result}{word.zh}{n}等于{after}。")))
        result = after
    return turns


def _fact(draw: random.Random) -> list[Exchange]:
    return [replace(exchange, facts={**exchange.facts, "is_fact": True}) for exchange in fact(draw)]


def _shortened_fact(draw: random.Random) -> list[Exchange]:
    return [shortened(exchange, draw) for exchange in fact(draw)]


def _story(draw: random.Random) -> list[Exchange]:
    asked, story = asked_for(draw)
    return [Exchange(asked, story.text)]


# Questions about the user: alone they have no answer, in a conversation they may have one.
ABOUT_USER = re.compile(
    r"\b(my (?!day|homework)|am I|do I (?!need|sleep|stay|learn|say|make|cook|brush|wear|get|find|help)|did I)"
)

PARTS: dict[Callable[[random.Random], list[Exchange]], int] = {
    lambda draw: talk(draw, "small talk"): 12,
    lambda draw: talk(draw, "identity"): 7,
    lambda draw: talk(draw, "unknown"): 6,
    _fact: 24,
    _shortened_fact: 3,
    arithmetic: 8,
    _sums_in_a_row: 4,
    word_problem: 3,
    comparison: 4,
    counting: 4,
    spelling: 5,
    small_world: 7,
    task: 8,
    choice: 2,
    _story: 5,
}


def conversation(draw: random.Random, longest: int = 8) -> list[Exchange]:
    """A conversation of two to `longest` turns, with things that are said early and asked for later."""
    length = draw.randint(2, longest)
    turns: list[Exchange] = []
    pending: list[Exchange] = []
    told: set[Callable[[random.Random], Memory]] = set()
    if draw.random() < 0.45:
        turns.append(
            starting(
                draw.choice(["Hello", "Hi", "Good morning", "Good evening", "How are you", "Good afternoon"]), draw
            )
        )
    while len(turns) < length:
        chance = draw.random()
        if pending and (chance < 0.4 or length - len(turns) <= len(pending)):
            turns.append(pending.pop(0))
        elif len(pending) < 2 and chance < 0.62:
            make = draw.choice(MEMORIES)
            about = ABOUT_NAME if make in ABOUT_NAME else (make,)
            if not told.intersection(about):  # nothing is told twice in two ways
                told.update(about)
                said, later = make(draw)
                turns.append(said)
                pending.extend(later)
        elif turns and chance < 0.68:
            back = _looking_back(turns, draw)
            if back is not None:
                turns.append(back)
        else:
            part = draw.choices(list(PARTS), list(PARTS.values()))[0](draw)
            if not any(turn.facts.get("part") == "unknown" and ABOUT_USER.search(turn.asked.en) for turn in part):
                turns += part
    turns += pending
    if draw.random() < 0.3:
        turns.append(starting("Thank you", draw))
    if draw.random() < 0.3:
        turns.append(starting(draw.choice(["Goodbye", "Good night"]), draw))
    return turns


def remembered(draw: random.Random) -> list[Exchange]:
    """One thing said and asked for, with little in between."""
    said, later = draw.choice(MEMORIES)(draw)
    between = draw.choices(list(PARTS), list(PARTS.values()))[0](draw) if draw.random() < 0.5 else []
    between = [turn for turn in between if len(turn.answer.en) < 200 and turn.facts.get("part") != "unknown"]
    return [said, *between, *later]
