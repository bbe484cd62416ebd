"""Text from which the ranges of a model's activations are taken where the user names no other.

The first part is from Jane Austen's "Emma" (1815), which is in the public domain; the rest was written for edgelm, under its licence.
"""

from __future__ import annotations

NOVEL = """\
The event had every promise of happiness for her friend. Mr. Weston was a man of unexceptionable character, easy fortune, suitable
age, and pleasant manners; and there was some satisfaction in considering with what self-denying, generous friendship she had
always wished and promoted the match; but it was a black morning's work for her. The want of Miss Taylor would be felt every hour
of every day. She recalled her past kindness—the kindness, the affection of sixteen years—how she had taught and how she had
played with her from five years old—how she had devoted all her powers to attach and amuse her in health—and how nursed her
through the various illnesses of childhood. A large debt of gratitude was owing here; but the intercourse of the last seven years,
the equal footing and perfect unreserve which had soon followed Isabella's marriage, on their being left to each other, was yet a
dearer, tenderer recollection. She had been a friend and companion such as few possessed: intelligent, well-informed, useful,
gentle, knowing all the ways of the family, interested in all its concerns, and peculiarly interested in herself, in every
pleasure, every scheme of hers—one to whom she could speak every thought as it arose, and who had such an affection for her as
could never find fault.

How was she to bear the change?—It was true that her friend was going only half a mile from them; but Emma was aware that great
must be the difference between a Mrs. Weston, only half a mile from them, and a Miss Taylor in the house; and with all her
advantages, natural and domestic, she was now in great danger of suffering from intellectual solitude. She dearly loved her
father, but he was no companion for her. He could not meet her in conversation, rational or playful.

The evil of the actual disparity in their ages (and Mr. Woodhouse had not married early) was much increased by his constitution
and habits; for having been a valetudinarian all his life, without activity of mind or body, he was a much older man in ways than
in years; and though everywhere beloved for the friendliness of his heart and his amiable temper, his talents could not have
recommended him at any time.

Her sister, though comparatively but little removed by matrimony, being settled in London, only sixteen miles off, was much beyond
her daily reach; and many a long October and November evening must be struggled through at Hartfield, before Christmas brought the
next visit from Isabella and her husband, and their little children, to fill the house, and give her pleasant society again.

Highbury, the large and populous village, almost amounting to a town, to which Hartfield, in spite of its separate lawn, and
shrubberies, and name, did really belong, afforded her no equals. The Woodhouses were first in consequence there. All looked up to
them. She had many acquaintance in the place, for her father was universally civil, but not one among them who could be accepted
in lieu of Miss Taylor for even half a day. It was a melancholy change; and Emma could not but sigh over it, and wish for
impossible things, till her father awoke, and made it necessary to be cheerful. His spirits required support. He was a nervous
man, easily depressed; fond of every body that he was used to, and hating to part with them; hating change of every kind.
Matrimony, as the origin of change, was always disagreeable; and he was by no means yet reconciled to his own daughter's marrying,
nor could ever speak of her but with compassion, though it had been entirely a match of affection, when he was now obliged to part
with Miss Taylor too; and from his habits of gentle selfishness, and of being never able to suppose that other people could feel
differently from himself, he was very much disposed to think Miss Taylor had done as sad a thing for herself as for them, and
would have been a great deal happier if she had spent all the rest of her life at Hartfield. Emma smiled and chatted as cheerfully
as she could, to keep him from such thoughts; but when tea came, it was impossible for him not to say exactly as he had said at
dinner,

"Poor Miss Taylor!—I wish she were here again. What a pity it is that Mr. Weston ever thought of her!"

"I cannot agree with you, papa; you know I cannot. Mr. Weston is such a good-humoured, pleasant, excellent man, that he thoroughly
deserves a good wife;—and you would not have had Miss Taylor live with us for ever, and bear all my odd humours, when she might
have a house of her own?"
"""

EVERYDAY = '''\
How do I keep bread fresh for longer? Keep it in a paper bag or a bread box at room temperature, away from sunlight. A refrigerator makes it
stale faster, because the starch in it hardens in the cold. What you cannot eat within three days is better sliced and frozen; a frozen
slice is ready after two minutes in the toaster.

Here is a short plan for the trip:
1. Monday, 8:30 a.m.: train from Vienna to Salzburg (2 h 22 min, about €35).
2. Tuesday: the fortress, then a walk along the river; lunch near the market.
3. Wednesday: the salt mine in Hallein. Take a warm coat, since it is only 10 °C down there.

```python
def mean(values: list[float]) -> float:
    """The arithmetic mean; an empty list has none."""
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)

print(mean([1.5, 2.25, 3.0]))  # 2.25
```

{"name": "kettle", "litres": 1.7, "colours": ["black", "steel"], "in_stock": true, "price": {"amount": 29.99, "currency": "EUR"}}

Water boils at 100 °C at sea level, and about one degree lower for every 300 metres that one climbs. At 3,000 metres it therefore boils
near 90 °C: x = 100 - 3000 / 300 = 90. Pasta takes longer up there, although the water is boiling just as hard.

Dear Ms. Novak,
thank you for your letter of 14 March. We have looked at the invoice again (no. 2024-0317), and you are right: the second item was charged
twice. You will receive $48.20 within five working days. We are sorry for the trouble!
Kind regards, the accounts office

"Did you lock the door?" she asked. "I think so," he said. "You think so?" - "I'm almost sure. Let's go back and look, it's only ten
minutes." They found the door locked, the window wide open, and the cat asleep on the sill.

Wie spät ist es? Es ist Viertel nach drei. ¿Dónde está la estación? Está a la derecha. Il pleut depuis ce matin, mais demain il fera beau.

The capital of France is Paris; that of Japan, Tokyo; that of Kenya, Nairobi. The Moon is some 384,400 km away, light takes 1.28 seconds for
that way, and an airliner at 900 km/h would take almost eighteen days. Of the planets, Jupiter is the largest and Mercury the smallest.
'''

CONVERSATION = (
    {"role": "user", "content": "Why is the sky blue?"},
    {
        "role": "assistant",
        "content": "Sunlight is a mix of all colours. The molecules of the air scatter blue light far more than red light, so that blue "
        "reaches your eyes from every part of the sky.",
    },
    {"role": "user", "content": "And why are sunsets red?"},
)
"""For models with a chat template: its special tokens have activations of their own."""
