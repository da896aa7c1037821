"""Children's stories without end: the plots of plots.txt, told anew each time with what was asked for.

    python nano/stories.py [SEED]     prints ten stories

A plot is a list of steps; each step has several wordings, and words in braces are filled from one cast, so a story can
say nothing about its hero that another of its sentences denies. Knows nothing of prompts' forms or of records.
"""

from __future__ import annotations

import random
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

BOYS = [
    "Adam",
    "Alex",
    "Ali",
    "Arlo",
    "Ben",
    "Carl",
    "Dan",
    "David",
    "Eli",
    "Emil",
    "Felix",
    "Finn",
    "Fred",
    "George",
    "Hugo",
    "Ivan",
    "Jack",
    "Jake",
    "James",
    "Joe",
    "Juan",
    "Karl",
    "Kofi",
    "Leo",
    "Liam",
    "Luca",
    "Luke",
    "Max",
    "Milo",
    "Ned",
    "Nico",
    "Noah",
    "Omar",
    "Oscar",
    "Otto",
    "Owen",
    "Paul",
    "Peter",
    "Ravi",
    "Rob",
    "Sam",
    "Simon",
    "Theo",
    "Tim",
    "Tom",
    "Tony",
    "Yusuf",
]
GIRLS = [
    "Ada",
    "Alice",
    "Amy",
    "Anna",
    "Asha",
    "Bella",
    "Clara",
    "Cora",
    "Dina",
    "Ella",
    "Emma",
    "Eva",
    "Fatima",
    "Greta",
    "Hana",
    "Heidi",
    "Ida",
    "Iris",
    "Jane",
    "Julia",
    "Kate",
    "Lea",
    "Lena",
    "Lily",
    "Lina",
    "Lisa",
    "Lucy",
    "Maria",
    "Maya",
    "Mei",
    "Mia",
    "Mina",
    "Nina",
    "Nora",
    "Olga",
    "Pia",
    "Rita",
    "Rosa",
    "Sara",
    "Sofia",
    "Tara",
    "Tina",
    "Vera",
    "Yara",
    "Zoe",
]
HE_ANIMALS = [
    "Bruno",
    "Barney",
    "Benny",
    "Binky",
    "Bobo",
    "Buddy",
    "Chip",
    "Coco",
    "Gus",
    "Hobo",
    "Koko",
    "Momo",
    "Monty",
    "Nibbles",
    "Oliver",
    "Oskar",
    "Patch",
    "Pico",
    "Pip",
    "Rex",
    "Rollo",
    "Rusty",
    "Scout",
    "Tiny",
    "Toby",
    "Wally",
    "Waldo",
    "Whiskers",
    "Ziggy",
]
SHE_ANIMALS = [
    "Bibi",
    "Bonny",
    "Bubbles",
    "Dot",
    "Fifi",
    "Flora",
    "Gigi",
    "Kiki",
    "Lola",
    "Lulu",
    "Luna",
    "Mimi",
    "Minnie",
    "Molly",
    "Nala",
    "Olive",
    "Penny",
    "Pippa",
    "Polly",
    "Poppy",
    "Rosie",
    "Ruby",
    "Stella",
    "Tilly",
    "Trixie",
    "Twinkle",
    "Wanda",
    "Willa",
    "Zuzu",
]
NAMES = sorted({*BOYS, *GIRLS, *HE_ANIMALS, *SHE_ANIMALS})

BIRDS = ["owl", "duck", "bird", "sparrow", "penguin", "parrot", "swan", "goose", "robin", "chick", "hen"]
SMALL = ["bee", "ladybug", "ant", "butterfly", "snail", "spider"]
BIG = [
    "bear",
    "elephant",
    "giraffe",
    "lion",
    "tiger",
    "horse",
    "cow",
    "camel",
    "dinosaur",
    "hippo",
    "dragon",
    "wolf",
    "panda",
]
MIDDLE = [
    "cat",
    "dog",
    "rabbit",
    "mouse",
    "fox",
    "kitten",
    "puppy",
    "squirrel",
    "hedgehog",
    "frog",
    "turtle",
    "lamb",
    "pig",
    "goat",
    "donkey",
    "deer",
    "monkey",
    "koala",
    "kangaroo",
    "beaver",
    "badger",
    "raccoon",
    "hamster",
    "otter",
    "mole",
    "sheep",
    "pony",
    "bunny",
    "zebra",
    "unicorn",
]
SEA = ["fish", "whale", "dolphin", "octopus", "crab", "seal", "seahorse", "starfish"]
ANIMALS = sorted({*BIRDS, *SMALL, *BIG, *MIDDLE, *SEA})
SWIMMERS = {*SEA, "frog", "duck", "penguin", "swan", "goose", "turtle", "otter", "beaver", "hippo", *SMALL, "robin"}
FAVOURITES = [
    "cat",
    "dog",
    "rabbit",
    "mouse",
    "fox",
    "bear",
    "owl",
    "bird",
    "duck",
    "kitten",
    "puppy",
    "lion",
    "dragon",
    "frog",
]
PEOPLE = {
    "princess": "she",
    "prince": "he",
    "knight": "he",
    "king": "he",
    "queen": "she",
    "fairy": "she",
    "pirate": "he",
    "wizard": "he",
    "robot": "he",
    "farmer": "he",
    "witch": "she",
    "giant": "he",
}
NO_PARENTS = {"knight", "king", "queen", "pirate", "wizard", "robot", "farmer", "witch", "giant"}

COLOURS = ["red", "blue", "green", "yellow", "orange", "purple", "pink", "white", "brown", "silver", "golden", "black"]
TOYS = [
    "ball",
    "kite",
    "balloon",
    "drum",
    "teddy bear",
    "toy boat",
    "toy train",
    "doll",
    "puzzle",
    "whistle",
    "toy robot",
    "paper plane",
    "spinning top",
    "toy car",
    "skipping rope",
    "music box",
    "picture book",
    "hat",
    "bell",
]
PLACES = {  # a place, with the words for being there
    "the park": "in",
    "the garden": "in",
    "the forest": "in",
    "the meadow": "in",
    "the village": "in",
    "the woods": "in",
    "the beach": "at",
    "the lake": "at",
    "the river": "by",
    "the old mill": "near",
    "the playground": "on",
    "the hill": "on",
    "the farm": "on",
    "the bridge": "under",
    "the pond": "by",
    "the old oak tree": "under",
}
FOODS = [
    "apple pie",
    "bread and honey",
    "bread and cheese",
    "honey cake",
    "carrot cake",
    "plum cake",
    "nut bread",
    "bread and jam",
    "lemon cake",
    "berry pie",
    "pumpkin bread",
    "cheese and fruit",
]
FLAVOURS = [
    "chocolate",
    "lemon",
    "strawberry",
    "carrot",
    "honey",
    "cherry",
    "banana",
    "blueberry",
    "nut",
    "vanilla",
    "plum",
]
FRUIT = ["apples", "pears", "plums", "cherries", "berries", "grapes", "nuts", "strawberries"]
PLANTS = [
    "a tall sunflower",
    "a red rose bush",
    "a huge pumpkin",
    "a little apple tree",
    "a blue bellflower",
    "a big tomato plant",
    "a bean plant",
    "a yellow tulip",
    "a strawberry plant",
]
CRITTERS = ["bird", "mouse", "hedgehog", "squirrel", "rabbit", "duckling", "kitten", "fox cub", "frog", "lamb"]
KIN = ["mother", "father", "grandma", "grandpa"]
TRAITS = ["kind", "clever", "curious", "cheerful", "gentle", "friendly", "happy", "brave", "funny", "quiet", "little"]

OPENINGS = """Once upon a time, there was {a_trait} {kind} named {H}.
Once upon a time, there lived {a_trait} {kind} named {H}.
Once there was {a_trait} {kind} named {H}.
Once there was {a_trait} {kind} named {H}, who lived {home}.
There was once {a_trait} {kind} called {H}.
{H} was {a_trait} {kind} who lived {home}.
{H} was {a_trait} {kind}. {He} lived {home}.
Not so long ago, there lived {a_trait} {kind} named {H}.
Long ago, {a_trait} {kind} named {H} lived {home}.
{A_trait} {kind} named {H} lived {home}.
Far away, {home}, there lived {a_trait} {kind} named {H}.
This is the story of {a_trait} {kind} named {H}.""".splitlines()
HABITS = """{He} loved [warm summer days|sunny mornings|the smell of rain|quiet evenings|windy days] and {food2}.
{He} liked to [dance|draw pictures|tell jokes|look at the clouds|collect pretty stones|whistle in the morning].
Everybody [liked {him}|knew {him}], because {he} was so {trait2}.
{His} favourite colour was {colour2}, and {his} favourite food was {food2}.
Every morning {he} ate {food2} and said hello to the sun.
{His} best friend in the world was {F}.""".splitlines()
HOMES = [
    "near the forest",
    "by a quiet river",
    "at the edge of a small village",
    "in a valley full of flowers",
    "in a little house on a hill",
    "in a house with {a_colour2} door",
    "behind the hills",
    "on the edge of a big wood",
    "near the sea",
    "next to an old mill",
    "in a small green valley",
    "at the end of a long road",
]
SEA_HOMES = ["near a coral reef", "in a warm blue bay", "behind the big rocks", "not far from a small island"]
CLOSINGS = """The end.
The end.
The end.
And they were all happy.
It was a day that {H} never forgot.
That night, {H} fell asleep with a smile.
What a wonderful day it was!""".splitlines()


@dataclass(frozen=True)
class Question:
    asked: str
    answer: str
    evidence: tuple[str, ...]  # one of these must stand in the story


@dataclass(frozen=True)
class Plot:
    name: str
    themes: tuple[str, ...]
    marks: frozenset[str]
    things: tuple[str, ...]  # the plot turns on one of these; empty if on none
    traits: tuple[str, ...]
    steps: tuple[tuple[str, ...], ...]
    questions: tuple[Question, ...]
    source: str = field(repr=False)

    def uses(self, slot: str) -> bool:
        return re.search(r"\{" + slot, self.source) is not None


@dataclass(frozen=True)
class Cast:
    """Who and what a story is about: every word that may stand in braces."""

    kind: str
    hero: str
    friend: str
    animal: str | None  # the friend's, if the friend is one
    trait: str
    thing: str
    colour: str
    place: str
    words: dict[str, str] = field(repr=False)


@dataclass(frozen=True)
class Story:
    text: str
    plot: Plot
    cast: Cast


AMERICAN = {
    "favourite": "favorite",
    "Favourite": "Favorite",
    "colour": "color",
    "Colour": "Color",
    "grey": "gray",
    "practised": "practiced",
    "harbour": "harbor",
    "neighbour": "neighbor",
}


def american(text: str) -> str:
    for british, word in AMERICAN.items():
        text = text.replace(british, word)
    return text


@cache
def plots() -> tuple[Plot, ...]:
    """The plots of plots.txt."""
    text = (Path(__file__).parent / "plots.txt").read_text(encoding="utf-8")
    return tuple(_plot(block) for block in re.split(r"^## ", text, flags=re.MULTILINE)[1:])


def _plot(block: str) -> Plot:
    head, *lines = [line for line in block.splitlines() if line.strip()]
    name, themes, marks, traits = (part.strip() for part in head.split(";"))
    things: tuple[str, ...] = ()
    words = []
    for mark in re.split(r" (?=[a-z]+(?:=|$| ))", marks):
        if mark.startswith("thing"):
            things = tuple(mark.partition("=")[2].split(",")) if "=" in mark else tuple(TOYS)
            mark = "thing"
        words.append(mark)
    questions = []
    for line in lines:
        if line.startswith("? "):
            asked, _, rest = line[2:].partition(" = ")
            answer, _, evidence = rest.partition(" | ")
            found = evidence.split("|") if evidence else re.findall(r"<(.*?)>", answer)
            questions.append(Question(asked, re.sub(r"[<>]", "", answer), tuple(found)))
    steps = tuple(tuple(line.split(" / ")) for line in lines if not line.startswith("? "))
    listed = tuple(theme.strip() for theme in themes.split(","))
    return Plot(name, listed, frozenset(words), things, tuple(traits.split()), steps, tuple(questions), block)


_SLOT = re.compile(r"\{(\w+)\}")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")


def fill(template: str, words: dict[str, str], chosen: random.Random) -> str:
    """A template with one of each [a|b] taken and the words in braces put in; in American spelling."""
    template = _CHOICE.sub(lambda match: chosen.choice(match[1].split("|")), template)
    while "{" in template:
        template = _SLOT.sub(lambda match: words[match[1]], template)
    return template


def an(words: str) -> str:
    vowel = words[0] in "aeiou" and not words.startswith("uni")
    return ("an " if vowel or words.startswith("honest") else "a ") + words


def up(words: str) -> str:
    return words[0].upper() + words[1:]


def pronoun_of(name: str) -> str:
    return "he" if name in BOYS or name in HE_ANIMALS else "she"


def name_for(kind: str, pronoun: str | None, chosen: random.Random) -> str:
    """A name that fits a boy, a girl, a person, or an animal."""
    if kind in ("boy", "girl") or kind in PEOPLE:
        pronoun = {"boy": "he", "girl": "she", **PEOPLE}[kind]
        return chosen.choice(BOYS if pronoun == "he" else GIRLS)
    return chosen.choice(HE_ANIMALS if (pronoun or chosen.choice(["he", "she"])) == "he" else SHE_ANIMALS)


def fits(plot: Plot, asked: dict[str, str]) -> bool:
    """Whether a plot can hold what is asked for."""
    kind = asked.get("animal", asked.get("hero", ""))
    at_sea = kind in SEA or (kind == "" and "name" not in asked and "sea" in plot.marks)
    if ("sea" in plot.marks) != at_sea or (asked.get("animal2") in SEA and kind not in SEA):
        return False
    if "human" in plot.marks and kind not in ("", "boy", "girl"):
        return False
    if "nobird" in plot.marks and kind in {*BIRDS, *SMALL, "fairy", "dragon"}:
        return False
    if "nobig" in plot.marks and kind in {*BIG, *PEOPLE, "unicorn", "zebra", "donkey"}:
        return False
    if "noswim" in plot.marks and kind in {*SWIMMERS, "pirate", "robot", "giant"}:
        return False
    if (plot.name == "snow" and kind in SMALL) or (plot.name == "singing" and kind == "fish"):
        return False
    if "thing" in asked and ("thing" not in plot.marks or asked["thing"] not in plot.things):
        return False
    if "place" in asked and "place" not in plot.marks:
        return False
    if "theme" in asked and asked["theme"] not in plot.themes:
        return False
    if "trait" in asked and asked["trait"] not in (*plot.traits, *TRAITS):
        return False
    if "friend" in asked and not plot.uses("F"):
        return False
    return not (
        "animal2" in asked and not (plot.uses("pal") or plot.uses("Pal") or plot.uses("newpal") or plot.uses("Newpal"))
    )


def cast(plot: Plot, asked: dict[str, str], chosen: random.Random) -> Cast:
    """Choose all that was not asked for."""
    kind = asked.get("animal") or asked.get("hero")
    name = asked.get("name")
    if kind is None and name is not None and (name in BOYS or name in GIRLS):
        kind = "boy" if name in BOYS else "girl"
    if kind is None:
        if "sea" in plot.marks:
            kind = chosen.choice(SEA)
        elif "human" in plot.marks or chosen.random() < 0.45:
            kind = chosen.choice(["boy", "girl"])
        else:
            pool = [*MIDDLE, *FAVOURITES, *BIG, *BIRDS, *SMALL]
            kind = chosen.choice([animal for animal in pool if fits(plot, {**asked, "animal": animal})])
    hero = name or name_for(kind, None, chosen)
    pronoun = pronoun_of(hero)
    human = kind in ("boy", "girl") or kind in PEOPLE
    other = chosen.choices(["she", "he"], [4, 1] if pronoun == "he" else [1, 4])[0]
    animal = asked.get("animal2")
    friend = asked.get("friend")
    if friend is None:
        if animal is None and not ("human" in plot.marks or (human and chosen.random() < 0.7)):
            pool = SEA if kind in SEA else [*MIDDLE, *BIRDS, *FAVOURITES, "bear", "bee", "ladybug"]
            animal = chosen.choice([one for one in pool if one not in (kind, "dragon") and one[-4:] != kind[-4:]])
        while friend is None or friend == hero:
            friend = name_for(animal or ("boy" if other == "he" else "girl"), other, chosen)
    trait = asked.get("trait") or chosen.choice([*plot.traits, *TRAITS])
    thing = asked.get("thing") or chosen.choice(plot.things or TOYS)
    colour = asked.get("colour") or chosen.choice(COLOURS)
    place = asked.get("place") or chosen.choice(list(PLACES))
    words = _words(plot, kind, hero, friend, animal, trait, thing, colour, place, "animal2" in asked, chosen)
    return Cast(kind, hero, friend, animal, trait, thing, colour, place, words)


def _pronouns(pronoun: str, mark: str) -> dict[str, str]:
    forms = {"he": ("he", "him", "his", "himself"), "she": ("she", "her", "her", "herself")}[pronoun]
    words = dict(zip(("he", "him", "his", "himself"), forms, strict=True))
    return {
        **{mark + key: word for key, word in words.items()},
        **{(up(mark) if mark else "") + (key if mark else up(key)): up(word) for key, word in words.items()},
    }


def _words(
    plot: Plot,
    kind: str,
    hero: str,
    friend: str,
    animal: str | None,
    trait: str,
    thing: str,
    colour: str,
    place: str,
    name_animal: bool,
    chosen: random.Random,
) -> dict[str, str]:
    preposition = PLACES[place]
    he, fhe = pronoun_of(hero), pronoun_of(friend)
    his = {"he": "his", "she": "her"}[he]
    elder = "the old owl" if kind in NO_PARENTS else f"{his} {chosen.choice(KIN)}"
    if kind == "owl" and elder == "the old owl":
        elder = "the old bear"
    child = "boy" if fhe == "he" else "girl"
    if animal is not None:
        pals = [f"{his} friend {friend} the {animal}", f"{friend} the {animal}"]
        newpal = chosen.choice([f"a {child}", an(animal)][1:]) + f" named {friend}"
    else:
        pals = [f"{his} friend {friend}"]
        newpal = f"a {child} named {friend}"
    pal = chosen.choice(pals)
    describes = trait if kind in SMALL or trait in ("little", "small") or chosen.random() < 0.6 else f"{trait} little"
    if kind in BIG or kind in NO_PARENTS:
        describes = trait
    homes = SEA_HOMES if kind in SEA else HOMES
    colour2 = chosen.choice([one for one in COLOURS if one != colour])
    others = [one for one in CRITTERS if one[-4:] not in (kind[-4:], (animal or "")[-4:])]
    return {
        "H": hero,
        "F": friend,
        **_pronouns(he, ""),
        **_pronouns(fhe, "f"),
        "kind": kind,
        "trait": trait,
        "a_trait": an(describes),
        "A_trait": up(an(describes)),
        "trait2": chosen.choice(["kind", "friendly", "funny", "cheerful"]),
        "thing": f"{colour} {thing}",
        "a_thing": an(f"{colour} {thing}"),
        "his_thing": f"{his} {colour} {thing}",
        "t": thing,
        "colour": colour,
        "a_colour": an(colour),
        "A_colour": up(an(colour)),
        "colour2": colour2,
        "a_colour2": an(colour2),
        "place": place,
        "at": f"{preposition} {place}",
        "to": f"to {place}",
        "from": f"from {place}",
        "elder": elder,
        "Elder": up(elder),
        "elder_s": elder + "'s",
        "pal": pal,
        "Pal": up(pal),
        "newpal": newpal,
        "Newpal": up(newpal),
        "critter": chosen.choice(others),
        "food": chosen.choice(FOODS),
        "food2": chosen.choice(FOODS),
        "flavour": chosen.choice(FLAVOURS),
        "fruit": (fruit := chosen.choice(FRUIT)),
        "fruit_one": {"apples": "apple", "pears": "pear"}.get(fruit, "banana"),
        "a_plant": chosen.choice(PLANTS),
        "home": chosen.choice(homes),
    }


def tell(asked: dict[str, str], chosen: random.Random, short: bool = False, plot: Plot | None = None) -> Story:
    """A story with all that is asked for.

    Asked for can be: animal, hero, name, friend, animal2, thing, colour, place, theme, trait. A story has 60 to
    150 words; a short one has at most 110.
    """
    pool = [plot] if plot else [one for one in plots() if fits(one, asked)]
    if not pool:
        raise ValueError(f"no plot can hold {asked}: ask for less, or for what nano/plots.txt has")
    if short:
        pool = [one for one in pool if one in _brief_plots()] or pool
    limit, plot, attempt = (110 if short else 150), chosen.choice(pool), 0
    while True:
        attempt += 1
        who = cast(plot, asked, chosen)
        sentences = [fill(chosen.choice(OPENINGS[:3] if short else OPENINGS), who.words, chosen)]
        if not short and chosen.random() < 0.3 and (habit := _habit(plot, who, chosen)):
            sentences.append(habit)
        for step in plot.steps:
            if step[0].startswith("~"):
                if short or chosen.random() < 0.5:
                    continue
                step = tuple(one.lstrip("~") for one in step)
            if short:  # the longer the search, the shorter the wordings
                step = tuple(sorted(step, key=len)[: max(1, 3 - attempt // 6)])
            sentences.append(fill(chosen.choice(step), who.words, chosen))
        if not short and chosen.random() < 0.4:
            sentences.append(fill(chosen.choice(CLOSINGS), who.words, chosen))
        number = sum(len(sentence.split()) for sentence in sentences)
        text = american(_paragraphs(sentences, short, chosen))
        told = all(value in text for part, value in asked.items() if part != "theme")
        if told and number <= limit and (short or number >= 60):
            return Story(text, plot, who)
        if attempt > 60:
            plot, attempt = chosen.choice(pool), 0


@cache
def _brief_plots() -> tuple[Plot, ...]:
    """The plots that can be told in 110 words."""
    shortest = {
        plot.name: sum(min(len(one.split()) for one in step) for step in plot.steps if step[0][0] != "~")
        for plot in plots()
    }
    return tuple(plot for plot in plots() if shortest[plot.name] <= 94)


def _habit(plot: Plot, who: Cast, chosen: random.Random) -> str | None:
    habit = chosen.choice(HABITS)
    clashes = ("best friend" in habit and plot.name != "wish") or (
        "Everybody" in habit and who.trait in ("lonely", "shy", "grumpy", "greedy", "sad", "poor", "naughty", "angry")
    )
    if clashes or (plot.name in ("new_friend", "sea_friend", "small") and "Everybody" in habit):
        return None
    return fill(habit, who.words, chosen)


def _paragraphs(sentences: list[str], short: bool, chosen: random.Random) -> str:
    """One paragraph, or three."""
    if short or chosen.random() < 0.5:
        return " ".join(sentences)
    first, last = chosen.choice([1, 2, 3]), chosen.choice([2, 3])
    parts = [sentences[:first], sentences[first:-last], sentences[-last:]]
    return "\n\n".join(" ".join(part) for part in parts if part)


def questions(story: Story, chosen: random.Random) -> list[tuple[str, str, str]]:
    """What can be asked about a story: (question, answer, the words of the story that hold the answer)."""
    found = []
    words = story.cast.words
    for question in story.plot.questions:
        for template in question.evidence:
            evidence = american(fill(template, words, chosen))
            if re.search(rf"\b{re.escape(evidence)}", story.text, re.IGNORECASE):
                asked, answer = (american(fill(text, words, chosen)) for text in (question.asked, question.answer))
                found.append((asked, up(answer), evidence))
                break
    found.append(("Who is the story about?", f"The story is about {words['H']}.", words["H"]))
    if story.cast.kind in ANIMALS:
        found.append(
            (f"What is the name of the {words['kind']}?", f"The {words['kind']} is named {words['H']}.", words["H"])
        )
        found.append((f"What kind of animal is {words['H']}?", f"{words['H']} is {an(words['kind'])}.", words["kind"]))
    return found


def main() -> None:
    chosen = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    for _ in range(10):
        story = tell({}, chosen, short=chosen.random() < 0.3)
        print(f"[{story.plot.name}, {len(story.text.split())} words]\n{story.text}")
        for question in questions(story, chosen):
            print("   ", question)
        print()


if __name__ == "__main__":
    main()
