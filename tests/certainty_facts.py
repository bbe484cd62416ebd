"""What the questions of certainty_tasks.py are about."""

from __future__ import annotations


def words(text: str) -> list[str]:
    return text.split()


def pairs(text: str) -> dict[str, str]:
    """Of words joined by a hyphen."""
    return dict(pair.split("-") for pair in text.split())


CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon", "Japan": "Tokyo",
    "China": "Beijing", "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens", "Norway": "Oslo", "Sweden": "Stockholm",
    "Finland": "Helsinki", "Denmark": "Copenhagen", "Austria": "Vienna", "Poland": "Warsaw", "Hungary": "Budapest",
    "Ireland": "Dublin", "Canada": "Ottawa", "Australia": "Canberra", "Kenya": "Nairobi", "Peru": "Lima", "Chile": "Santiago",
    "Cuba": "Havana", "Iraq": "Baghdad", "Iran": "Tehran", "Thailand": "Bangkok", "Vietnam": "Hanoi", "Nepal": "Kathmandu",
    "Turkey": "Ankara", "Ukraine": "Kyiv", "Romania": "Bucharest", "Bulgaria": "Sofia", "Serbia": "Belgrade", "Croatia": "Zagreb",
    "Argentina": "Buenos Aires", "Colombia": "Bogotá", "Morocco": "Rabat", "Mongolia": "Ulaanbaatar", "Latvia": "Riga",
    "Estonia": "Tallinn", "Lithuania": "Vilnius", "Ghana": "Accra", "Senegal": "Dakar", "Ethiopia": "Addis Ababa",
    "Uruguay": "Montevideo", "Ecuador": "Quito", "Jordan": "Amman", "Lebanon": "Beirut", "Syria": "Damascus", "Qatar": "Doha",
    "Iceland": "Reykjavik", "Belgium": "Brussels", "Switzerland": "Bern", "Slovakia": "Bratislava", "Malaysia": "Kuala Lumpur",
    "Bangladesh": "Dhaka", "Afghanistan": "Kabul", "Indonesia": "Jakarta", "Tunisia": "Tunis", "Zambia": "Lusaka",
    "Uganda": "Kampala",
}  # fmt: skip
CONTINENTS = {
    "Europe": words("France Germany Italy Spain Norway Poland Greece Hungary Ireland Austria Portugal Belgium Denmark Finland Sweden"),
    "Asia": words("Japan China India Nepal Thailand Vietnam Mongolia Bangladesh Iraq Iran Malaysia Jordan Indonesia Pakistan"),
    "Africa": words("Egypt Kenya Ghana Senegal Ethiopia Morocco Tunisia Zambia Uganda Nigeria Algeria Angola Mali Chad Sudan"),
    "South America": words("Brazil Peru Chile Argentina Colombia Uruguay Ecuador Bolivia Paraguay Venezuela"),
}
OPPOSITES = pairs(
    "hot-cold big-small up-down left-right day-night happy-sad fast-slow old-young rich-poor strong-weak hard-soft light-dark "
    "full-empty  early-late high-low long-short open-closed wet-dry thick-thin loud-quiet near-far first-last true-false win-lose "
    "push-pull  buy-sell give-take love-hate begin-end alive-dead clean-dirty inside-outside above-below before-after always-never "
    "deep-shallow wide-narrow brave-cowardly ancient-modern expand-contract smooth-rough heavy-light sweet-sour tight-loose"
)
PLURALS = pairs(
    "cat-cats dog-dogs child-children mouse-mice foot-feet tooth-teeth man-men woman-women goose-geese box-boxes city-cities "
    "leaf-leaves  wolf-wolves knife-knives baby-babies bus-buses church-churches potato-potatoes ox-oxen person-people party-parties "
    "half-halves  cactus-cacti car-cars tree-trees house-houses dish-dishes fox-foxes hero-heroes lady-ladies life-lives wife-wives "
    "loaf-loaves"
)
PASTS = pairs(
    "go-went run-ran eat-ate see-saw take-took give-gave write-wrote sing-sang swim-swam drink-drank drive-drove buy-bought "
    "think-thought bring-brought catch-caught teach-taught find-found keep-kept sleep-slept leave-left feel-felt make-made say-said "
    "walk-walked jump-jumped play-played stop-stopped study-studied break-broke speak-spoke choose-chose fly-flew know-knew draw-drew"
)
KINDS = {
    "fruit": words("apple banana orange grape peach pear cherry mango plum lemon"),
    "animal": words("horse tiger rabbit elephant monkey goat sheep lion bear frog"),
    "vehicle": words("car bus train truck bicycle airplane boat motorcycle tram van"),
    "color": words("red blue green yellow purple brown black white pink grey"),
    "tool": words("hammer saw drill wrench screwdriver pliers chisel axe shovel rake"),
    "musical instrument": words("piano guitar violin flute trumpet drum cello harp clarinet banjo"),
}
SYMBOLS = pairs(
    "hydrogen-H helium-He carbon-C nitrogen-N oxygen-O sodium-Na iron-Fe gold-Au silver-Ag copper-Cu lead-Pb calcium-Ca potassium-K "
    "zinc-Zn  tin-Sn mercury-Hg neon-Ne chlorine-Cl sulfur-S phosphorus-P aluminum-Al silicon-Si nickel-Ni iodine-I uranium-U "
    "magnesium-Mg argon-Ar"
)
LANGUAGES = pairs(
    "France-French Germany-German Italy-Italian Spain-Spanish Brazil-Portuguese Portugal-Portuguese Mexico-Spanish Japan-Japanese "
    "Egypt-Arabic  Iraq-Arabic Iran-Persian Greece-Greek Poland-Polish Russia-Russian Sweden-Swedish Norway-Norwegian Finland-Finnish "
    "Denmark-Danish  Turkey-Turkish Hungary-Hungarian Vietnam-Vietnamese Thailand-Thai Austria-German Argentina-Spanish Chile-Spanish "
    "Australia-English  Jamaica-English Ukraine-Ukrainian Romania-Romanian Netherlands-Dutch Bulgaria-Bulgarian Cuba-Spanish "
    "Morocco-Arabic"
)
CURRENCIES = pairs(
    "Japan-yen India-rupee China-yuan Russia-ruble Mexico-peso Brazil-real Switzerland-franc Germany-euro France-euro "
    "Australia-dollar  Canada-dollar Poland-zloty Sweden-krona Norway-krone Thailand-baht Vietnam-dong Israel-shekel Turkey-lira "
    "Argentina-peso Chile-peso  Egypt-pound Kenya-shilling Pakistan-rupee Italy-euro Spain-euro Denmark-krone Hungary-forint "
    "Nigeria-naira Iran-rial Iraq-dinar"
)
YOUNG = pairs(
    "dog-puppy cat-kitten cow-calf horse-foal sheep-lamb pig-piglet duck-duckling goose-gosling bear-cub lion-cub deer-fawn goat-kid "
    "kangaroo-joey frog-tadpole chicken-chick swan-cygnet elephant-calf wolf-pup whale-calf tiger-cub butterfly-caterpillar owl-owlet "
    "fox-kit"
)
COLORS = pairs(
    "banana-yellow grass-green snow-white coal-black blood-red sky-blue lemon-yellow tomato-red carrot-orange milk-white "
    "cucumber-green  chocolate-brown pumpkin-orange strawberry-red cloud-white broccoli-green ruby-red emerald-green sapphire-blue "
    "raven-black lime-green"
)
FRENCH = pairs(
    "dog-chien cat-chat house-maison water-eau bread-pain book-livre red-rouge blue-bleu green-vert black-noir white-blanc day-jour "
    "night-nuit  man-homme woman-femme milk-lait sun-soleil moon-lune school-école car-voiture friend-ami one-un two-deux three-trois "
    "four-quatre  five-cinq ten-dix tree-arbre fish-poisson bird-oiseau apple-pomme cheese-fromage king-roi hand-main heart-cœur "
    "love-amour"
)
LANDMARKS = {
    "Eiffel Tower": "Paris", "Colosseum": "Rome", "Big Ben": "London", "Statue of Liberty": "New York", "Brandenburg Gate": "Berlin",
    "Kremlin": "Moscow", "Acropolis": "Athens", "Golden Gate Bridge": "San Francisco", "Sydney Opera House": "Sydney",
    "Prado": "Madrid", "Louvre": "Paris", "Sagrada Familia": "Barcelona", "Forbidden City": "Beijing", "Hagia Sophia": "Istanbul",
    "Burj Khalifa": "Dubai", "Tower Bridge": "London", "White House": "Washington", "Charles Bridge": "Prague",
    "Rijksmuseum": "Amsterdam", "Hollywood Sign": "Los Angeles", "Space Needle": "Seattle", "Buckingham Palace": "London",
    "Trevi Fountain": "Rome", "Hermitage": "Saint Petersburg",
}  # fmt: skip
AUTHORS = {
    "Romeo and Juliet": "Shakespeare", "Hamlet": "Shakespeare", "Oliver Twist": "Dickens", "War and Peace": "Tolstoy",
    "1984": "Orwell", "Pride and Prejudice": "Austen", "The Odyssey": "Homer", "Don Quixote": "Cervantes", "Faust": "Goethe",
    "The Hobbit": "Tolkien", "Moby-Dick": "Melville", "Frankenstein": "Shelley", "Dracula": "Stoker", "Harry Potter": "Rowling",
    "Les Misérables": "Hugo", "Crime and Punishment": "Dostoevsky", "The Great Gatsby": "Fitzgerald", "Ulysses": "Joyce",
    "Macbeth": "Shakespeare", "Emma": "Austen", "The Trial": "Kafka", "Animal Farm": "Orwell", "Jane Eyre": "Brontë",
    "The Divine Comedy": "Dante", "Treasure Island": "Stevenson", "Brave New World": "Huxley", "The Raven": "Poe",
    "The Old Man and the Sea": "Hemingway", "Gulliver's Travels": "Swift", "A Christmas Carol": "Dickens",
    "The Time Machine": "Wells", "Alice in Wonderland": "Carroll", "Robinson Crusoe": "Defoe",
}  # fmt: skip
SIZES = words("ant mouse cat dog goat horse elephant whale")
ROMAN = words("I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
ONES = words("zero one two three four five six seven eight nine")
TEENS = words("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")
