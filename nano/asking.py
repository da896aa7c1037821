"""How people ask: one question and its answer, the ways to type it, and the ways to ask for a story."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import stories
from stories import ANIMALS, BOYS, COLOURS, GIRLS, NAMES, PEOPLE, PLACES, TOYS, american, an
from tables import DAYS, MONTHS, countries

CHILDREN = [*BOYS, *GIRLS]


@dataclass(frozen=True)
class Turn:
    """One question and its answer, with what a measurement needs to know."""

    asked: str
    answer: str
    facts: dict[str, Any]


def turn(asked: str, reply: str, /, **facts: Any) -> Turn:
    return Turn(asked, reply.replace("D.C..", "D.C."), facts)


QUESTION_WORDS = [
    "what",
    "which",
    "who",
    "whose",
    "where",
    "when",
    "why",
    "how",
    "is",
    "are",
    "do",
    "does",
    "did",
    "can",
    "could",
    "will",
    "would",
    "has",
    "have",
    "was",
    "were",
    "name",
    "may",
    "should",
    "isn't",
    "what's",
]
ORDERS = [
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
    "take",
    "sing",
    "teach",
    "explain",
    "finish",
    "complete",
    "read",
]
BEFORE_QUESTION = [
    "Hi! ",
    "Hello! ",
    "Please tell me: ",
    "Question: ",
    "Hey, ",
    "I have a question. ",
    "Can you tell me: ",
    "Tell me, ",
    "Do you know: ",
    "Excuse me, ",
    "Please answer: ",
    "OK, ",
]
BEFORE_ORDER = ["Please ", "Can you ", "Could you ", "Hi! Please ", "Hello, please ", "Hey, ", "Will you "]
BRITISH = {"color": "colour", "favorite": "favourite", "gray": "grey"}


def vary(prompt: str, chosen: random.Random, typos: bool = True) -> str:
    """The same prompt as another person might type it."""
    first = prompt.split()[0].lower().strip(",!?.") if prompt.split() else ""
    question = (first in QUESTION_WORDS and first not in ORDERS) or prompt.endswith("?")
    order = first in ORDERS and not question
    if prompt[-1] not in ".?!:=" and not prompt.endswith(" is") and not re.search(r"\n", prompt):
        prompt += "?" if question else "." if order or len(prompt.split()) > 2 else chosen.choice(["!", ".", ""])
    draw = chosen.random()
    if question and draw < 0.17 and first not in ("do", "can", "could", "will", "would"):
        before = chosen.choice(BEFORE_QUESTION)
        prompt = before + (_lower_first(prompt) if before[-2] in ",:" else prompt)
    elif order and draw < 0.3 and first != "repeat":
        before = chosen.choice(BEFORE_ORDER)
        prompt = before + _lower_first(prompt)
        if before.startswith(("Can", "Could", "Will")):
            prompt = prompt.rstrip(".") + "?"
    elif (question or order) and 0.3 < draw < 0.34 and "please" not in prompt.lower():
        prompt = prompt[:-1] + ", please" + prompt[-1] if prompt[-1] in ".?!" else prompt + " please"
    for american_word, british in BRITISH.items():
        if american_word in prompt and chosen.random() < 0.3:
            prompt = prompt.replace(american_word, british)
    draw = chosen.random()
    if draw < 0.22:
        prompt = prompt.lower()
    if 0.12 < draw < 0.36 and prompt[-1] in ".?!" and "\n" not in prompt:
        prompt = prompt[:-1]
    elif 0.36 < draw < 0.39 and prompt[-1] in "?!":
        prompt += prompt[-1] * chosen.choice([1, 2])
    elif 0.39 < draw < 0.4:
        prompt = prompt.upper() if len(prompt) < 30 and typos else prompt
    elif 0.4 < draw < 0.415 and typos:
        prompt = _typo(prompt, chosen)
    return prompt


def _lower_first(prompt: str) -> str:
    first = prompt.split()[0].strip(",.!?'s")
    keep = first in NAMES or first == "I" or prompt.startswith(("I'", "MiniCPM")) or _is_proper(first)
    return prompt if keep else prompt[0].lower() + prompt[1:]


@cache
def _proper() -> frozenset[str]:
    listed = {word for row in countries() for cell in row[:2] for word in cell.split()}
    return frozenset(listed | set(MONTHS) | set(DAYS)) - {"the"}


def _is_proper(word: str) -> bool:
    return word in _proper()


def _typo(prompt: str, chosen: random.Random) -> str:
    """Two letters of one long, common word swapped."""
    words = prompt.split(" ")
    places = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha() and word.islower()]
    if places:
        i = chosen.choice(places)
        at = chosen.randrange(1, len(words[i]) - 2)
        words[i] = words[i][:at] + words[i][at + 1] + words[i][at] + words[i][at + 2 :]
    return " ".join(words)


ABOUT = """Tell me a story about {about}.
Tell me a story about {about}.
Tell me a story about {about}.
Tell me a short story about {about}.
Tell me a little story about {about}.
Tell me a bedtime story about {about}.
Tell me a nice story about {about}.
Tell me a fairy tale about {about}.
Tell us a story about {about}.
Write a story about {about}.
Write a short story about {about}.
Write me a story about {about}.
Write a children's story about {about}.
Write a little story about {about}, please.
Can you tell me a story about {about}?
Can you tell a story about {about}?
Can you write a story about {about}?
Can you make up a story about {about}?
Could you tell me a story about {about}?
Could you write a short story about {about}?
Please tell me a story about {about}.
Please write a short story about {about}.
Will you tell me a story about {about}?
Would you tell me a story about {about}?
I want a story about {about}.
I want to hear a story about {about}.
I would like a story about {about}.
I'd like to hear a story about {about}.
I would like to read a short story about {about}.
I need a story about {about}.
Make up a story about {about}.
Give me a story about {about}.
Give me a short story about {about}.
Let me hear a story about {about}.
Read me a story about {about}.
A story about {about}.
A story about {about}, please.
A short story about {about}, please.
Story about {about}.
Do you know a story about {about}?
Do you have a story about {about}?
How about a story about {about}?
My little sister wants a story about {about}.
My son wants to hear a story about {about}.
Now tell me a story about {about}.
Create a short story about {about}.""".splitlines()
ANY = """Tell me a story.
Tell me a story.
Tell me a story, please.
Tell me a short story.
Tell me a nice story.
Tell me a little story.
Tell me a children's story.
Tell me a fairy tale.
Tell me any story.
Tell me something nice, a story maybe.
Write a story.
Write a short story.
Write me a story.
Write a story for children.
Can you tell me a story?
Can you write a story?
Can you make up a story?
Could you tell me a story?
Could you tell me a short story, please?
Please tell me a story.
I want a story.
I want to hear a story.
I would like to hear a story.
I'd like a story, please.
I need a story for my children.
A story, please.
Story, please.
Read me a story.
Make up a story.
Give me a story.
Do you know a story?
How about a story?
Once upon a time""".splitlines()
BEDTIME = """Tell me a bedtime story.
Can you tell me a bedtime story?
A bedtime story, please.
I want a bedtime story.
Write a bedtime story.
Please tell me a good night story.
Could you tell me a bedtime story?
It is time for bed. Tell me a story.
I cannot sleep. Tell me a story, please.
Do you know a bedtime story?""".splitlines()
AGAIN = [
    "Another one, please.",
    "Tell me another story.",
    "One more story, please.",
    "Another story, please.",
    "One more!",
    "Can you tell me another one?",
    "Tell me another one.",
    "Please tell me one more story.",
]
WISHES = {  # what is asked for -> how often
    "": 12,
    "animal": 20,
    "animal trait": 11,
    "animal name": 8,
    "name": 6,
    "child name": 9,
    "theme": 13,
    "child thing": 5,
    "child name thing": 5,
    "thing": 5,
    "animal place": 5,
    "animal thing": 5,
    "hero": 4,
    "hero trait": 3,
    "hero name": 2,
    "animal animal2": 4,
    "name friend": 4,
    "child trait": 4,
    "animal theme": 4,
    "name theme": 4,
    "child place": 3,
    "animal name place": 2,
    "animal trait name": 3,
    "bedtime": 5,
}


def wish(chosen: random.Random) -> tuple[str, dict[str, str]]:
    """(How a user asks for a story, what is asked for)."""
    while True:
        parts = chosen.choices(list(WISHES), list(WISHES.values()))[0].split()
        if not parts:
            return vary(chosen.choice(ANY), chosen), {}
        if parts == ["bedtime"]:
            return vary(chosen.choice(BEDTIME), chosen), {"theme": "bedtime"}
        asked = _choose(parts, chosen)
        if any(stories.fits(plot, asked) for plot in stories.plots()):
            return _ask(asked, chosen), asked


def _choose(parts: list[str], chosen: random.Random) -> dict[str, str]:
    asked: dict[str, str] = {}
    for part in parts:
        if part == "child":
            asked["hero"] = chosen.choice(["boy", "girl"])
        elif part == "hero":
            asked["hero"] = chosen.choice(list(PEOPLE))
        elif part in ("animal", "animal2"):
            pool = [*ANIMALS, *stories.FAVOURITES, *stories.FAVOURITES]
            asked[part] = chosen.choice([one for one in pool if one != asked.get("animal")])
        elif part == "name":
            kind = asked.get("animal") or asked.get("hero") or chosen.choice(["boy", "girl"])
            asked["name"] = stories.name_for(kind, None, chosen)
        elif part == "friend":
            asked["friend"] = chosen.choice([name for name in CHILDREN if name != asked["name"]])
        elif part == "thing":
            asked["thing"] = chosen.choice([*TOYS, "bike"])
            if chosen.random() < 0.6:
                asked["colour"] = chosen.choice(COLOURS)
        elif part == "place":
            asked["place"] = chosen.choice(list(PLACES))
        elif part == "trait":
            asked["trait"] = chosen.choice(TRAITS)
        elif part == "theme":
            asked["theme"] = chosen.choice([theme for plot in stories.plots() for theme in plot.themes])
    return asked


TRAITS = [
    "brave",
    "kind",
    "clever",
    "curious",
    "little",
    "shy",
    "lonely",
    "sleepy",
    "happy",
    "sad",
    "funny",
    "hungry",
    "quiet",
    "small",
    "proud",
    "friendly",
    "grumpy",
    "gentle",
    "cheerful",
    "scared",
]


def _ask(asked: dict[str, str], chosen: random.Random) -> str:
    about = ""
    kind = asked.get("animal") or asked.get("hero")
    if kind:
        about = an(f"{asked['trait']} {kind}" if "trait" in asked else kind)
        if "name" in asked:
            about += f" {chosen.choice(['named', 'called'])} {asked['name']}"
        if "animal2" in asked:
            about += f" and {an(asked['animal2'])}"
    elif "name" in asked:
        about = asked["name"] + (f" and {asked['friend']}" if "friend" in asked else "")
    if "thing" in asked:
        thing = an(f"{asked['colour']} {asked['thing']}" if "colour" in asked else asked["thing"])
        about = f"{about} {chosen.choice(['and', 'with', 'who has'] if kind else ['and'])} {thing}" if about else thing
    if "place" in asked:
        about += f" {PLACES[asked['place']]} {asked['place']}"
    if "theme" in asked:
        theme = asked["theme"]
        if not about:
            about = theme
        elif chosen.random() < 0.5:
            about = f"{about} and {theme}"
        else:
            return vary(f"Tell me a story about {about}. It should be about {theme}.", chosen, typos=False)
    return vary(american(chosen.choice(ABOUT).format(about=about)), chosen, typos=False)


def told(chosen: random.Random) -> tuple[Turn, stories.Story]:
    prompt, asked = wish(chosen)
    plot = None
    if asked.get("theme") == "bedtime":
        named = "bedtime" if chosen.random() < 0.6 else "moon"
        plot = next(plot for plot in stories.plots() if plot.name == named)
        story = stories.tell({}, chosen, plot=plot)
    else:
        story = stories.tell(asked, chosen)
    return Turn(prompt, story.text, {"asked": asked}), story


def story_turn(chosen: random.Random) -> Turn:
    return told(chosen)[0]
