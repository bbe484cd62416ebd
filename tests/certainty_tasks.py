"""Writes tasks.jsonl for `edgelm route calibrate`: thirty-odd kinds of short questions, some of which a small model gets right.

    python tests/certainty_tasks.py 100 --seed 1 > tasks.jsonl

The same seed writes the same questions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from certainty_facts import (
    AUTHORS,
    CAPITALS,
    COLORS,
    CONTINENTS,
    CURRENCIES,
    DAYS,
    FRENCH,
    KINDS,
    LANDMARKS,
    LANGUAGES,
    MONTHS,
    ONES,
    OPPOSITES,
    PASTS,
    PLURALS,
    ROMAN,
    SIZES,
    SYMBOLS,
    TEENS,
    TENS,
    YOUNG,
    words,
)

Row = dict[str, Any]

NAMES = words("Anna Ben Carla David Emma Frank Grace Henry Ida Jack")
THINGS = words("apples books coins pencils stamps cards marbles cookies")
WORDS = [*OPPOSITES, *PLURALS, *(word for kind in KINDS.values() for word in kind)]


def number(random: Random, n_digits: int = 0) -> int:
    n = n_digits or random.choice([1, 1, 1, 2, 2])
    return random.randint(10 ** (n - 1) if n > 1 else 1, 10**n - 1)


def spelled(n: int) -> str:
    if n < 20:
        return (ONES + TEENS)[n]
    if n < 100:
        return TENS[n // 10 - 2] + (f"-{ONES[n % 10]}" if n % 10 else "")
    return f"{ONES[n // 100]} hundred" + (f" and {spelled(n % 100)}" if n % 100 else "")


def last_number(prompt: str, answer: int) -> Row:
    return {"prompt": prompt, "answer": str(answer), "grader": "number"}


def contains(prompt: str, answer: str) -> Row:
    return {"prompt": prompt, "answer": answer, "grader": "contains"}


def addition(random: Random) -> Row:
    a, b = number(random), number(random)
    return last_number(f"What is {a} + {b}?", a + b)


def subtraction(random: Random) -> Row:
    a, b = sorted([number(random), number(random)], reverse=True)
    return last_number(f"What is {a} - {b}?", a - b)


def multiplication(random: Random) -> Row:
    a, b = random.randint(1, 12), random.randint(1, 12)
    return last_number(f"What is {a} times {b}?", a * b)


def word_problem(random: Random) -> Row:
    name, thing, a, b = random.choice(NAMES), random.choice(THINGS), random.randint(2, 20), random.randint(2, 20)
    if random.random() < 0.5:
        return last_number(f"{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?", a + b)
    a, b = max(a, b) + 1, min(a, b)
    return last_number(f"{name} has {a} {thing} and gives away {b}. How many {thing} does {name} have left?", a - b)


def larger(random: Random) -> Row:
    a = number(random, random.randint(1, 3))
    b = a
    while b == a:
        b = number(random, random.randint(1, 3))
    word, answer = random.choice([("larger", max(a, b)), ("smaller", min(a, b))])
    return {
        "prompt": f"Which number is {word}, {a} or {b}? Answer with the number only.",
        "answer": str(answer),
        "grader": "number",
    }


def sequence(random: Random) -> Row:
    begin, step = random.randint(1, 20), random.choice([1, 1, 2, 5, 10])
    return last_number(
        f"What number comes next: {', '.join(str(begin + i * step) for i in range(4))}? Answer with the number only.", begin + 4 * step
    )


def digits(random: Random) -> Row:
    n = number(random, random.randint(1, 3))
    return last_number(f"Write the number {spelled(n)} in digits.", n)


def sorting(random: Random) -> Row:
    values = random.sample(range(1, 30), 3)
    return contains(
        f"Sort these numbers from smallest to largest: {', '.join(map(str, values))}. Answer with the numbers only.",
        ", ".join(map(str, sorted(values))),
    )


def even(random: Random) -> Row:
    n = number(random)
    word = random.choice(["even", "odd"])
    return {
        "prompt": f"Is {n} an {word} number? Answer yes or no.",
        "answer": "yes" if (n % 2 == 0) == (word == "even") else "no",
        "grader": "choice",
        "choices": ["yes", "no"],
    }


def first_letter(random: Random) -> Row:
    word = random.choice(WORDS)
    return contains(f'What is the first letter of the word "{word}"? Answer with the letter only.', word[0])


def capital(random: Random) -> Row:
    country = random.choice(list(CAPITALS))
    return contains(f"What is the capital of {country}?", CAPITALS[country])


def continent(random: Random) -> Row:
    where = random.choice(list(CONTINENTS))
    return contains(f"On which continent is {random.choice(CONTINENTS[where])}? Answer with the continent only.", where)


def opposite(random: Random) -> Row:
    word = random.choice(list(OPPOSITES))
    return contains(f'What is the opposite of "{word}"? Answer with one word.', OPPOSITES[word])


def plural(random: Random) -> Row:
    word = random.choice(list(PLURALS))
    return contains(f'What is the plural of "{word}"? Answer with one word.', PLURALS[word])


def past(random: Random) -> Row:
    word = random.choice(list(PASTS))
    return contains(f'What is the past tense of "{word}"? Answer with one word.', PASTS[word])


def odd_one(random: Random) -> Row:
    kind, other = random.sample(list(KINDS), 2)
    right = random.choice(KINDS[kind])
    options = [right, *random.sample(KINDS[other], 2)]
    random.shuffle(options)
    listed = "\n".join(f"{letter}) {option}" for letter, option in zip("ABC", options, strict=True))
    return {
        "prompt": f"Which of these is a {kind}?\n{listed}\nAnswer with the letter only.",
        "answer": "ABC"[options.index(right)],
        "grader": "choice",
        "choices": ["A", "B", "C"],
    }


def is_kind(random: Random) -> Row:
    kind, other = random.sample(list(KINDS), 2)
    is_true = random.random() < 0.5
    thing = random.choice(KINDS[kind if is_true else other])
    return {
        "prompt": f"Is this true or false: {thing} is a kind of {kind}.",
        "answer": "true" if is_true else "false",
        "grader": "choice",
        "choices": ["true", "false"],
    }


def next_name(random: Random) -> Row:
    names, what = random.choice([(DAYS, "day"), (MONTHS, "month")])
    i = random.randrange(len(names))
    word, step = random.choice([("after", 1), ("before", -1)])
    return contains(f"Which {what} comes right {word} {names[i]}?", names[(i + step) % len(names)])


def symbol(random: Random) -> Row:
    element = random.choice(list(SYMBOLS))
    return contains(f"What is the chemical symbol of {element}?", SYMBOLS[element])


def language(random: Random) -> Row:
    country = random.choice(list(LANGUAGES))
    return contains(f"Which language do most people speak in {country}?", LANGUAGES[country])


def currency(random: Random) -> Row:
    country = random.choice(list(CURRENCIES))
    return contains(f"What is the currency of {country}?", CURRENCIES[country])


def young(random: Random) -> Row:
    animal = random.choice(list(YOUNG))
    return contains(f"What is a young {animal} called? Answer with one word.", YOUNG[animal])


def color(random: Random) -> Row:
    thing = random.choice(list(COLORS))
    return contains(f"What is the usual color of {thing}? Answer with one word.", COLORS[thing])


def french(random: Random) -> Row:
    word = random.choice(list(FRENCH))
    return contains(f'What is the French word for "{word}"?', FRENCH[word])


def landmark(random: Random) -> Row:
    name = random.choice(list(LANDMARKS))
    return contains(f"In which city is the {name}?", LANDMARKS[name])


def author(random: Random) -> Row:
    title = random.choice(list(AUTHORS))
    return contains(f'Who wrote "{title}"?', AUTHORS[title])


def roman(random: Random) -> Row:
    n = random.randint(1, 20)
    return last_number(f"Which number is the Roman numeral {ROMAN[n - 1]}?", n)


def doubled(random: Random) -> Row:
    n = random.randint(1, 50)
    return last_number(f"What is {n} doubled?", 2 * n)


def in_words(random: Random) -> Row:
    n = random.randint(1, 99)
    return contains(f"Write the number {n} in words.", spelled(n))


def units(random: Random) -> Row:
    n = random.randint(1, 10)
    small, large, factor = random.choice(
        [("minutes", "hours", 60), ("days", "weeks", 7), ("months", "years", 12), ("seconds", "minutes", 60), ("cents", "dollars", 100)]
    )
    return last_number(f"How many {small} are in {n} {large if n > 1 else large[:-1]}?", n * factor)


def bigger(random: Random) -> Row:
    a, b = random.sample(SIZES, 2)
    word, pick = random.choice([("bigger", max), ("smaller", min)])
    answer = pick([a, b], key=SIZES.index)
    return {"prompt": f"Which animal is {word}, {a} or {b}? Answer with one word.", "answer": answer, "grader": "choice", "choices": [a, b]}


def hats(random: Random) -> Row:
    people, colors = random.sample(NAMES, 3), random.sample(KINDS["color"], 3)
    text = " ".join(f"{person} has a {hue} hat." for person, hue in zip(people, colors, strict=True))
    i = random.randrange(3)
    return {"prompt": f"{text} What color is {people[i]}'s hat?", "answer": colors[i], "grader": "choice", "choices": colors}


def taller(random: Random) -> Row:
    a, b = random.sample(NAMES, 2)
    word, answer = random.choice([("taller", a), ("shorter", b)])
    return {"prompt": f"{a} is taller than {b}. Who is {word}?", "answer": answer, "grader": "choice", "choices": [a, b]}


def next_letter(random: Random) -> Row:
    i = random.randrange(25)
    return contains(f"Which letter of the alphabet comes right after {chr(65 + i)}? Answer with the letter only.", chr(66 + i))


def last_word(random: Random) -> Row:
    said = random.sample(WORDS, random.randint(3, 6))
    return contains(f"What is the last of these words: {', '.join(said)}? Answer with one word.", said[-1])


def how_many(random: Random) -> Row:
    said = random.sample(WORDS, random.randint(1, 6))
    return last_number(f"How many words are these: {', '.join(said)}? Answer with the number only.", len(said))


MAKERS: tuple[Callable[[Random], Row], ...] = (
    addition, subtraction, multiplication, word_problem, larger, sequence, digits, sorting, even, first_letter, capital, continent,
    opposite, plural, past, odd_one, is_kind, next_name, symbol, language, currency, young, color, french, landmark, author, roman,
    doubled, in_words, units, bigger, hats, taller, next_letter, last_word, how_many,
)  # fmt: skip


def shown(random: Random, row: Row, make: Callable[[Random], Row]) -> Row:
    """The row, every other time after two questions of its kind that have been answered."""
    if random.random() < 0.5:
        return row
    prompt = row["prompt"]
    messages: list[dict[str, str]] = []
    while len(messages) < 4:
        example = make(random)
        if example["prompt"] != prompt:
            messages += [{"role": "user", "content": example["prompt"]}, {"role": "assistant", "content": example["answer"]}]
    return {"messages": [*messages, {"role": "user", "content": prompt}], **{key: row[key] for key in row if key != "prompt"}}


def tasks(n_each: int, seed: int) -> Iterator[Row]:
    """Up to n_each different questions of every kind, mixed."""
    rows = []
    for make in MAKERS:
        random = Random(f"{seed} {make.__name__}")
        found: dict[str, Row] = {}
        for _ in range(n_each * 20):
            row = make(random)
            found.setdefault(row["prompt"], row)
            if len(found) == n_each:
                break
        rows += [{"task": make.__name__, **shown(random, row, make)} for row in found.values()]
    Random(seed).shuffle(rows)
    yield from rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n_each", type=int)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    for row in tasks(given.n_each, given.seed):
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
