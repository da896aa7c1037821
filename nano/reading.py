"""Questions whose answer stands in the prompt, and words that are said again: what teaches a model to copy."""

from __future__ import annotations

import random

import stories
from arithmetic import arithmetic
from asking import CHILDREN, Turn, told, turn, vary
from knowledge import country, small, words
from stories import ANIMALS, BOYS, COLOURS, GIRLS, an, pronoun_of, up
from tables import DAYS, table

READ = [
    "Read the story and answer the question.\n\n{story}\n\n{question}",
    "{story}\n\n{question}",
    "Read the story and answer the question.\n\n{story}\n\nQuestion: {question}",
    "{story}\n\nQuestion: {question}",
    "{question}\n\n{story}",
    "Here is a story: {story}\n\n{question}",
    "Answer the question.\n\n{story}\n\n{question}",
    "{story} {question}",
    "Story: {story}\nQuestion: {question}",
]
THINGS = [
    "ball",
    "kite",
    "book",
    "cup",
    "hat",
    "bag",
    "pen",
    "doll",
    "drum",
    "bike",
    "boat",
    "key",
    "ring",
    "coat",
    "box",
    "lamp",
    "spoon",
    "bell",
    "car",
    "scarf",
    "basket",
    "flower",
    "shell",
    "stone",
    "candle",
    "clock",
    "brush",
    "mirror",
    "pencil",
    "towel",
    "whistle",
    "apple",
    "cake",
    "balloon",
    "chair",
    "blanket",
    "bottle",
]
DISHES = [
    "apples",
    "soup",
    "bread",
    "rice",
    "cheese",
    "cake",
    "pizza",
    "honey",
    "carrots",
    "pancakes",
    "fish",
    "pasta",
    "grapes",
    "cookies",
    "salad",
    "bananas",
    "cherries",
    "noodles",
    "plums",
    "nuts",
]
ROOMS = [
    "kitchen",
    "garden",
    "park",
    "garage",
    "school",
    "library",
    "forest",
    "shop",
    "zoo",
    "kindergarten",
    "barn",
    "market",
    "museum",
    "bakery",
    "station",
]
HOLDERS = [
    "on the table",
    "under the bed",
    "in the box",
    "behind the door",
    "on the shelf",
    "in the drawer",
    "under the chair",
    "in the basket",
    "next to the lamp",
    "on the window",
    "in the bag",
    "behind the tree",
]
MOODS = ["happy", "sad", "tired", "angry", "hungry", "scared", "proud", "bored", "excited", "lonely"]
HOBBIES = ["swim", "dance", "sing", "read", "draw", "run", "cook", "climb", "ski", "paint", "fish", "sleep"]


def _has(chosen: random.Random) -> tuple[str, list[tuple[str, str]]]:
    people = chosen.sample(CHILDREN, chosen.choice([2, 2, 3]))
    things = chosen.sample(THINGS, len(people))
    hues = chosen.sample(COLOURS, len(people))
    passage = " ".join(f"{who} has {an(f'{hue} {what}')}." for who, what, hue in zip(people, things, hues, strict=True))
    found = []
    for who, what, hue in zip(people, things, hues, strict=True):
        found += [
            (f"Who has the {what}?", f"{who} has the {what}."),
            (f"What color is the {what}?", f"The {what} is {hue}."),
            (f"What does {who} have?", f"{who} has {an(f'{hue} {what}')}."),
        ]
    return passage, found


def _eats(chosen: random.Random) -> tuple[str, list[tuple[str, str]]]:
    people = chosen.sample(CHILDREN, chosen.choice([2, 2, 3]))
    dishes = chosen.sample(DISHES, len(people))
    found = []
    for who, dish in zip(people, dishes, strict=True):
        found += [(f"What does {who} like?", f"{who} likes {dish}."), (f"Who likes {dish}?", f"{who} likes {dish}.")]
    return " ".join(f"{who} likes {dish}." for who, dish in zip(people, dishes, strict=True)), found


def _goes(chosen: random.Random) -> tuple[str, list[tuple[str, str]]]:
    people = chosen.sample(CHILDREN, chosen.choice([1, 2, 3]))
    rooms = chosen.sample(ROOMS, len(people))
    found = []
    for who, room in zip(people, rooms, strict=True):
        found += [
            (f"Where did {who} go?", f"{who} went to the {room}."),
            (f"Who went to the {room}?", f"{who} went to the {room}."),
        ]
    return " ".join(f"{who} went to the {room}." for who, room in zip(people, rooms, strict=True)), found


def _lies(chosen: random.Random) -> tuple[str, list[tuple[str, str]]]:
    things = chosen.sample(THINGS, chosen.choice([1, 2, 3]))
    where = chosen.sample(HOLDERS, len(things))
    found = []
    for what, place in zip(things, where, strict=True):
        found += [
            (f"Where is the {what}?", f"The {what} is {place}."),
            (f"What is {place}?", f"The {what} is {place}."),
        ]
    return " ".join(f"The {what} is {place}." for what, place in zip(things, where, strict=True)), found


def _feels(chosen: random.Random) -> tuple[str, list[tuple[str, str]]]:
    people = chosen.sample(CHILDREN, chosen.choice([2, 3]))
    moods = chosen.sample(MOODS, len(people))
    found = []
    for who, mood in zip(people, moods, strict=True):
        found += [(f"How does {who} feel?", f"{who} is {mood}."), (f"Who is {mood}?", f"{who} is {mood}.")]
    return " ".join(f"{who} is {mood}." for who, mood in zip(people, moods, strict=True)), found


def _old(chosen: random.Random) -> tuple[str, list[tuple[str, str]]]:
    one, two = chosen.sample(CHILDREN, 2)
    a, b = chosen.sample(range(3, 16), 2)
    found = [
        (f"How old is {one}?", f"{one} is {a} years old."),
        (f"How old is {two}?", f"{two} is {b} years old."),
        ("Who is older?", f"{one if a > b else two} is older."),
        ("Who is younger?", f"{one if a < b else two} is younger."),
    ]
    return f"{one} is {a} years old. {two} is {b} years old.", found


def _pets(chosen: random.Random) -> tuple[str, list[tuple[str, str]]]:
    people = chosen.sample(CHILDREN, chosen.choice([1, 2]))
    kinds = chosen.sample(
        ["dog", "cat", "rabbit", "hamster", "bird", "horse", "mouse", "turtle", "fish", "goat"], len(people)
    )
    called = chosen.sample([*stories.HE_ANIMALS, *stories.SHE_ANIMALS], len(people))
    found = []
    for who, kind, name in zip(people, kinds, called, strict=True):
        found += [
            (f"What is the name of {who}'s {kind}?", f"{who}'s {kind} is named {name}."),
            (f"Who has {an(kind)}?", f"{who} has {an(kind)}."),
            (f"What pet does {who} have?", f"{who} has {an(kind)}."),
            (f"Who is {name}?", f"{name} is {who}'s {kind}."),
        ]
    passage = " ".join(
        f"{who} has {an(kind)} named {name}." for who, kind, name in zip(people, kinds, called, strict=True)
    )
    return passage, found


def _gives(chosen: random.Random) -> tuple[str, list[tuple[str, str]]]:
    one, two = chosen.sample(CHILDREN, 2)
    what, hue = chosen.choice(THINGS), chosen.choice(COLOURS)
    gift = an(f"{hue} {what}")
    verb, past = chosen.choice([("give", "gave"), ("bring", "brought"), ("show", "showed"), ("send", "sent")])
    found = [
        (f"What did {one} {verb} to {two}?", f"{one} {past} {two} {gift}."),
        (f"What color was the {what}?", f"The {what} was {hue}."),
        (f"Who {past} something to {two}?", f"{one} {past} {two} {gift}."),
    ]
    return f"{one} {past} {two} {gift}.", found


def _finds(chosen: random.Random) -> tuple[str, list[tuple[str, str]]]:
    who, what, room = chosen.choice(CHILDREN), chosen.choice(THINGS), chosen.choice(ROOMS)
    hue, mood = chosen.choice(COLOURS), chosen.choice(["happy", "proud", "excited", "surprised"])
    day = chosen.choice(DAYS)
    passage = f"On {day}, {who} found {an(f'{hue} {what}')} in the {room}. {up(pronoun_of(who))} was very {mood}."
    found = [
        (f"What did {who} find?", f"{who} found {an(f'{hue} {what}')}."),
        (f"Where did {who} find the {what}?", f"{who} found the {what} in the {room}."),
        (f"How did {who} feel?", f"{who} was very {mood}."),
        (f"What color was the {what}?", f"The {what} was {hue}."),
        (f"When did {who} find the {what}?", f"{who} found the {what} on {day}."),
        (f"Who found the {what}?", f"{who} found the {what}."),
    ]
    return passage, found


def _likes_to(chosen: random.Random) -> tuple[str, list[tuple[str, str]]]:
    people = chosen.sample(CHILDREN, chosen.choice([2, 3]))
    hobbies = chosen.sample(HOBBIES, len(people))
    found = []
    for who, hobby in zip(people, hobbies, strict=True):
        found += [
            (f"What does {who} like to do?", f"{who} likes to {hobby}."),
            (f"Who likes to {hobby}?", f"{who} likes to {hobby}."),
        ]
    return " ".join(f"{who} likes to {hobby}." for who, hobby in zip(people, hobbies, strict=True)), found


def _day(chosen: random.Random) -> tuple[str, list[tuple[str, str]]]:
    who, friend = chosen.sample(CHILDREN, 2)
    room, dish, what, hue = chosen.choice(ROOMS), chosen.choice(DISHES), chosen.choice(THINGS), chosen.choice(COLOURS)
    he = up(pronoun_of(who))
    passage = f"In the morning {who} went to the {room}. There {pronoun_of(who)} met {friend}. They ate {dish}. "
    passage += f"{he} bought {an(f'{hue} {what}')}."
    found = [
        (f"Where did {who} go?", f"{who} went to the {room}."),
        (f"Who did {who} meet?", f"{who} met {friend}."),
        ("What did they eat?", f"They ate {dish}."),
        (f"What did {who} buy?", f"{who} bought {an(f'{hue} {what}')}."),
        (f"When did {who} go to the {room}?", f"{who} went to the {room} in the morning."),
    ]
    return passage, found


PASSAGES = [_has, _has, _eats, _goes, _lies, _feels, _old, _pets, _gives, _finds, _finds, _likes_to, _day, _day]


def reading(chosen: random.Random) -> list[Turn]:
    """A story or a few sentences with a question; the answer stands in them."""
    draw = chosen.random()
    if draw < 0.4:
        passage, found = chosen.choice(PASSAGES)(chosen)
        questions = chosen.sample(found, min(len(found), chosen.choice([1, 1, 2])))
        asked, answer = questions[0]
        turns = [
            turn(f"{passage} {asked}" if chosen.random() < 0.7 else f"{passage}\n{asked}", answer, passage=passage)
        ]
        return turns + [turn(vary(asked, chosen, typos=False), answer) for asked, answer in questions[1:]]
    if draw < 0.8:
        story = stories.tell({}, chosen, short=True)
        all_questions = stories.questions(story, chosen)
        picked = chosen.sample(all_questions, min(len(all_questions), chosen.choice([1, 1, 1, 2])))
        asked, answer, _ = picked[0]
        prompt = chosen.choice(READ).format(story=story.text, question=asked)
        turns = [turn(prompt, answer, passage=story.text)]
        return turns + [turn(vary(asked, chosen, typos=False), answer) for asked, answer, _ in picked[1:]]
    telling, story = told(chosen)
    all_questions = stories.questions(story, chosen)
    picked = chosen.sample(all_questions, min(len(all_questions), chosen.choice([1, 1, 2, 3])))
    return [telling] + [
        turn(vary(asked, chosen, typos=False), answer, passage=story.text) for asked, answer, _ in picked
    ]


SENTENCES = """The sun is warm today.
I like my little house.
The cat sleeps on the bed.
We go to school by bus.
Birds can fly very high.
My dog likes to run.
The moon is bright tonight.
Rain falls on the roof.
I have two good friends.
Apples are red and sweet.
The river runs to the sea.
Snow is white and cold.
She sings a happy song.
He plays with a ball.
The tree is old and tall.
We eat bread and cheese.
Good things need time.
The train is late again.
Frogs jump into the pond.
Stars shine in the dark.""".splitlines()
MAKE = ["I have a new {}.", "Look at the little {}!", "The {} is very nice.", "My friend has a {}.", "I can see a {}."]
KEPT = {  # what a user tells -> (the sentence, our reply, later question, its answer, what can be told)
    "name": ("My name is {}.", "Nice to meet you, {}!", "What is my name?", "Your name is {}.", CHILDREN),
    "I am": ("I am {}.", "Nice to meet you, {}!", "What is my name?", "Your name is {}.", CHILDREN),
    "color": (
        "My favorite color is {}.",
        "{} is a lovely color!",
        "What is my favorite color?",
        "Your favorite color is {}.",
        COLOURS,
    ),
    "food": (
        "My favorite food is {}.",
        "I have heard that {} can be very good.",
        "What is my favorite food?",
        "Your favorite food is {}.",
        [
            "pizza",
            "soup",
            "rice",
            "bread",
            "cake",
            "pasta",
            "fish",
            "salad",
            "chocolate",
            "cheese",
            "ice cream",
            "honey",
        ],
    ),
    "animal": (
        "My favorite animal is the {}.",
        "The {} is a wonderful animal.",
        "What is my favorite animal?",
        "Your favorite animal is the {}.",
        ANIMALS,
    ),
    "friend": (
        "My best friend is {}.",
        "{} is lucky to have a friend like you.",
        "Who is my best friend?",
        "Your best friend is {}.",
        CHILDREN,
    ),
    "age": (
        "I am {} years old.",
        "{} years old! That is a good age.",
        "How old am I?",
        "You are {} years old.",
        [str(n) for n in range(5, 70)],
    ),
    "home": (
        "I live in {}.",
        "{} is a nice place to live.",
        "Where do I live?",
        "You live in {}.",
        [
            "Paris",
            "London",
            "Berlin",
            "Rome",
            "Madrid",
            "Tokyo",
            "China",
            "France",
            "Italy",
            "Spain",
            "Canada",
            "India",
            "Germany",
            "Japan",
        ],
    ),
    "brother": (
        "My brother's name is {}.",
        "{} is a nice name.",
        "What is my brother's name?",
        "Your brother's name is {}.",
        BOYS,
    ),
    "sister": (
        "My sister's name is {}.",
        "{} is a nice name.",
        "What is my sister's name?",
        "Your sister's name is {}.",
        GIRLS,
    ),
    "job": (
        "I am a {}.",
        "A {} has an important job.",
        "What is my job?",
        "You are a {}.",
        ["teacher", "doctor", "baker", "farmer", "cook", "nurse", "pilot", "painter", "writer", "student"],
    ),
    "likes": (
        "I like to {}.",
        "It is good that you like to {}.",
        "What do I like to do?",
        "You like to {}.",
        ["swim", "dance", "run", "cook", "climb", "ski", "garden", "travel", "sew", "bake"],
    ),
    "number": (
        "My lucky number is {}.",
        "{} is a good number.",
        "What is my lucky number?",
        "Your lucky number is {}.",
        [str(n) for n in range(1, 100)],
    ),
}
PETS = ["dog", "cat", "rabbit", "hamster", "bird", "horse", "mouse", "turtle", "fish", "parrot"]


def remembered(chosen: random.Random) -> tuple[Turn, Turn]:
    """Something that a user tells, and the question about it that may come later."""
    if chosen.random() < 0.2:
        pet, name = chosen.choice(PETS), chosen.choice([*stories.HE_ANIMALS, *stories.SHE_ANIMALS])
        said = chosen.choice(
            [f"I have {an(pet)} named {name}.", f"My {pet} is called {name}.", f"My {pet}'s name is {name}."]
        )
        return (
            turn(vary(said, chosen, typos=False), f"{name} is a lovely name for {an(pet)}."),
            turn(vary(f"What is my {pet}'s name?", chosen, typos=False), f"Your {pet}'s name is {name}."),
        )
    weights = [4 if key == "name" else 1 for key in KEPT]
    said, reply, later, answer, values = KEPT[chosen.choices(list(KEPT), weights)[0]]
    value = chosen.choice(values)
    return (
        turn(vary(said.format(value), chosen, typos=False), up(reply.format(value))),
        turn(vary(later, chosen, typos=False), answer.format(value)),
    )


WORDS = sorted({*THINGS, *(row[0] for row in table("plurals")), *(one for one in ANIMALS)})


def copying(chosen: random.Random) -> list[Turn]:
    """Things to say again: words, names, lists, and what was told before."""
    draw = chosen.random()
    word, other, third = chosen.sample(WORDS, 3)
    who = chosen.choice(CHILDREN)
    if draw < 0.3:
        kept, later = remembered(chosen)
        if chosen.random() < 0.5:
            return [kept, later]
        middle = chosen.choice([arithmetic, country, words, small])(chosen)
        return [kept, middle, later]
    options: list[tuple[str, str]] = [
        (f"Repeat after me: {chosen.choice(SENTENCES)}", ""),
        (f"Repeat after me: {word}", ""),
        (f"Repeat after me: {word}, {other}, {third}", ""),
        (f"Repeat this sentence: {who} has {an(chosen.choice(COLOURS) + ' ' + chosen.choice(THINGS))}.", ""),
        (f"Say this again: {chosen.choice(SENTENCES)}", ""),
        (f"Say: {chosen.choice(SENTENCES)}", ""),
    ]
    if draw < 0.45:
        asked = chosen.choice(options)[0]
        return [turn(asked, asked.partition(": ")[2])]
    number = chosen.choice([2, 3, 3, 4, 5])
    times = {2: "two", 3: "three", 4: "four", 5: "five"}[number]
    listed = chosen.sample(WORDS, number)
    numbers = [str(chosen.randrange(1, 20)) for _ in range(number)]
    in_order = sorted((word, other))
    thing = chosen.choice([one for one in THINGS if one[0] not in "aeiou"])
    pairs = [
        (f"Say hello to {who}.", f"Hello, {who}!"),
        (f"Say goodbye to {who}.", f"Goodbye, {who}!"),
        (f"Say good morning to {who}.", f"Good morning, {who}!"),
        (f"Say thank you to {who}.", f"Thank you, {who}!"),
        (f"Say happy birthday to {who}.", f"Happy birthday, {who}!"),
        (f"Spell {word}.", "-".join(word.upper()) + "."),
        (f"How do you spell {word}?", "-".join(word.upper()) + "."),
        (f"Spell the name {who}.", "-".join(who.upper()) + "."),
        (f"Say {word} {times} times.", ", ".join([word] * number).capitalize() + "."),
        (f"Say the word {word}.", word.capitalize() + "."),
        (f"Make a sentence with the word {thing}.", MAKE[THINGS.index(thing) % len(MAKE)].format(thing)),
        (f"Write a sentence with {thing}.", MAKE[THINGS.index(thing) % len(MAKE)].format(thing)),
        (f"Which word comes first in the alphabet, {word} or {other}?", f"{in_order[0].capitalize()} comes first."),
        (f"What is the first letter of {word}?", f"The first letter of {word} is {word[0].upper()}."),
        (f"What is the last letter of {word}?", f"The last letter of {word} is {word[-1].upper()}."),
        (f"How many letters are in the word {word}?", f"The word {word} has {len(word)} letters."),
        (f"Repeat these words: {', '.join(listed)}.", ", ".join(listed).capitalize() + "."),
        (f"Repeat these numbers: {', '.join(numbers)}.", ", ".join(numbers) + "."),
        (f"Write the word {word} in capital letters.", word.upper() + "."),
        (f"Which is the first word: {', '.join(listed)}?", f"The first word is {listed[0]}."),
        (f"Which is the last word: {', '.join(listed)}?", f"The last word is {listed[-1]}."),
        (f"What is the second word: {', '.join(listed)}?", f"The second word is {listed[1]}."),
    ]
    if draw < 0.5:  # a list that is kept for later
        items = chosen.sample(DISHES, chosen.choice([2, 3]))
        line = ", ".join(items[:-1]) + f" and {items[-1]}"
        return [
            turn(vary(f"I need to buy {line}.", chosen, typos=False), f"All right: {line}."),
            turn(vary("What do I need to buy?", chosen, typos=False), f"You need to buy {line}."),
        ]
    asked, answer = chosen.choice(pairs)
    return [turn(vary(asked, chosen, typos=False) if ":" not in asked else asked, answer)]
