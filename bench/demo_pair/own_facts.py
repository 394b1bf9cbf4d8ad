"""Tables from which `own_chat` builds questions and answers; all written for this project.

Each table is one string, `key: value` or `key`, entries separated by `;`, parsed by `table`
and `items`: a few hundred short facts read better so than as Python literals.
"""


def items(text: str) -> list[str]:
    """The entries of a `;`-separated list."""
    return [" ".join(entry.split()) for entry in text.split(";") if entry.strip()]


def table(text: str) -> dict[str, str]:
    """`{key: value}` of the `;`-separated `key: value` entries."""
    entries = (entry.partition(":") for entry in text.split(";") if ":" in entry)
    return {" ".join(key.split()): " ".join(value.split()) for key, _, value in entries}


CAPITALS = table("""
France: Paris; Germany: Berlin; Spain: Madrid; Italy: Rome; Portugal: Lisbon; Hungary: Budapest; Austria:
Vienna; Poland: Warsaw; Sweden: Stockholm; Norway: Oslo; Denmark: Copenhagen; Finland: Helsinki; Ireland:
Dublin; Greece: Athens; Turkey: Ankara; Egypt: Cairo; Kenya: Nairobi; Tanzania: Dodoma; Ghana: Accra;
Nigeria: Abuja; Morocco: Rabat; Ethiopia: Addis Ababa; India: New Delhi; China: Beijing; Japan: Tokyo; South
Korea: Seoul; Thailand: Bangkok; Vietnam: Hanoi; Indonesia: Jakarta; Australia: Canberra; New Zealand:
Wellington; Canada: Ottawa; Mexico: Mexico City; Cuba: Havana; Brazil: Brasilia; Argentina: Buenos Aires;
Chile: Santiago; Peru: Lima; Colombia: Bogota; Iceland: Reykjavik; Belgium: Brussels; Switzerland: Bern;
Romania: Bucharest; Bulgaria: Sofia; Croatia: Zagreb; Serbia: Belgrade; Ukraine: Kyiv; Estonia: Tallinn;
Latvia: Riga; Nepal: Kathmandu
""")

CONCEPTS = table("""
gravity: Gravity is the force that pulls objects towards each other. It keeps us on the ground and the moon
in orbit.;
photosynthesis: Photosynthesis is how plants make sugar from water, air and the light of the sun.;
a rainbow: A rainbow is an arc of colours that appears when sunlight passes through drops of rain.;
the water cycle: Water rises from the sea as vapour, forms clouds, falls as rain and flows back to the sea.;
electricity: Electricity is the flow of charged particles. It powers lamps, motors and computers.;
a volcano: A volcano is an opening in the ground through which hot melted rock and gas come out.;
a computer: A computer is a machine that follows instructions to store, change and show information.;
the internet: The internet is a network that connects computers all over the world so that they can share
data.;
democracy: Democracy is a form of government in which the people choose their leaders by voting.;
inflation: Inflation is a general rise in prices, so that the same money buys fewer things than before.;
supply and demand: When many people want a thing and there is little of it, its price rises, and
otherwise it falls.;
machine learning: Machine learning lets a computer find patterns in examples instead of following fixed
rules.;
a neural network: A neural network is a model made of simple connected units whose weights are learnt from
data.;
evolution: Evolution is the slow change of living things over generations, because some leave more
offspring.;
an atom: An atom is the smallest piece of an element. It has a nucleus with electrons around it.;
the moon: The moon is a rocky body that travels around the earth about once every month.;
the sun: The sun is a star, a very hot ball of gas that gives the earth its light and warmth.;
a black hole: A black hole is a place where gravity is so strong that not even light can get out.;
a recipe: A recipe is a list of ingredients and steps for making a dish.;
music: Music is sound arranged in time, with rhythm, melody and harmony, that people make and enjoy.;
a novel: A novel is a long story in prose about invented people and events.;
a metaphor: A metaphor describes one thing as if it were another, for example to call time a river.;
climate change: Climate change is the long-term change of the weather of the earth, now mainly caused by
people.;
recycling: Recycling turns used materials such as paper, glass and metal into new products.;
a budget: A budget is a plan of how much money comes in and how it will be spent.;
a bank: A bank keeps money for people, lends it to others and helps them to make payments.;
sleep: Sleep is a state of rest in which the body recovers and the brain sorts what it has learnt.;
the heart: The heart is a muscle that pumps blood through the body.;
a vaccine: A vaccine teaches the body to recognise a germ, so that it can defend itself later.;
vitamins: Vitamins are substances that the body needs in small amounts and gets mostly from food.;
the seasons: The seasons change because the axis of the earth is tilted as it goes around the sun.;
an earthquake: An earthquake is a shaking of the ground when rocks below the surface suddenly move.;
a telescope: A telescope collects light with lenses or mirrors so that distant things look nearer.;
a prime number: A prime number is a whole number above one that only one and itself divide.;
an algorithm: An algorithm is a list of clear steps that solves a problem.;
a variable: In a program, a variable is a name for a value that may change.;
recursion: Recursion is when a function calls itself to solve a smaller part of the same problem.;
probability: Probability is a number between zero and one that says how likely an event is.;
a triangle: A triangle is a shape with three straight sides and three angles that add up to 180 degrees.;
philosophy: Philosophy is the study of basic questions about knowledge, life and what is right.;
history: History is the study of what people did in the past and why.;
the Renaissance: The Renaissance was a time of new art and learning in Europe after the Middle Ages.;
the industrial revolution: The industrial revolution was the change from work by hand to work by machines.;
a bicycle: A bicycle is a vehicle with two wheels that the rider moves by turning pedals.;
jazz: Jazz is a kind of music with swinging rhythm and improvisation that began in New Orleans.;
chess: Chess is a board game for two players, who each try to trap the king of the other.;
yoga: Yoga is a practice of postures, breathing and attention that many people use to relax.;
coffee: Coffee is a drink made from the roasted seeds of a plant. It keeps many people awake.;
bread: Bread is a food baked from flour, water and often yeast.;
friendship: Friendship is a bond between people who like, trust and help each other.
""")

HOW_TO = table("""
bake bread: Mix flour, water, salt and yeast. Let the dough rise. Bake it until the crust is golden.;
make a cup of tea: Boil fresh water. Pour it over the tea. Wait for three minutes and take the leaves out.;
learn a new language: Learn a few words every day. Listen to the language often. Speak with other people.;
plant a tree: Dig a wide hole. Set the roots in it and fill it with soil. Water it well.;
ride a bicycle: Sit on the saddle. Push off and pedal. Look ahead and keep your balance.;
write a letter: Begin with a greeting. Say what you want to say in short paragraphs. Sign your name.;
clean a kitchen: Clear the counters. Wash them with warm water and soap. Sweep the floor.;
save money: Write down what you spend. Decide what you can do without. Put some money aside each month.;
sleep better: Go to bed at the same time every night. Keep the room dark. Put your phone away.;
train a dog: Choose one short command. Reward the dog when it obeys. Practise every day.;
cook rice: Rinse the rice. Add twice as much water. Simmer it with the lid on until the water is gone.;
study for an exam: Make a plan of topics. Explain each topic in your own words. Rest the evening before.;
start a garden: Choose a sunny place. Loosen the soil. Sow a few kinds of vegetables and water them.;
draw a horse: Begin with simple ovals. Join them with light lines. Add the legs, the mane and the shade.;
play the guitar: Tune the strings. Learn three chords. Change between them slowly and then faster.;
build a birdhouse: Cut six boards. Make a round hole in one of them. Nail the boards together.;
swim: Start in shallow water. Practise floating and breathing out. Then add the arms and the legs.;
knit a scarf: Cast on thirty stitches. Knit row after row. Cast off when it is long enough.;
prepare for an interview: Read about the company. Practise your answers. Arrive a little early.;
make new friends: Join a group that shares your interests. Ask people about themselves. Meet them again.;
fix a flat tyre: Take the wheel off. Find the hole and patch it. Pump the tyre up again.;
organize a birthday party: Choose a day and a place. Invite your guests. Prepare food, music and games.;
write a good essay: Choose one main idea. Give reasons and examples. End with a short conclusion.;
take good photographs: Find soft light. Hold the camera steady. Take several pictures and keep the best.;
stay healthy: Eat fruit and vegetables. Walk every day. Sleep enough and see your friends.;
manage my time: Write down your tasks. Do the most important one first. Take short breaks.;
paint a room: Cover the floor. Paint the edges with a brush. Paint the walls with a roller.;
make pancakes: Mix flour, eggs and milk. Heat a little butter in a pan. Fry both sides until golden.;
pack a suitcase: Make a list. Roll your clothes. Put heavy things at the bottom.;
learn to code: Choose one language. Write small programs every day. Read the code of other people.;
give a speech: Know your main point. Practise aloud. Look at your audience and speak slowly.;
grow tomatoes: Sow the seeds indoors. Plant them out in a sunny place. Water them and tie them to a stick.;
reduce stress: Breathe slowly. Take a walk. Talk with somebody you trust and do one thing at a time.;
run a marathon: Begin months before. Run a little farther each week. Rest well before the race.;
wash a sweater: Use cool water and mild soap. Do not wring it. Dry it flat on a towel.;
make a budget: List your income. List your expenses. Plan what you will spend in each group.;
read more books: Keep a book close to you. Read ten pages a day. Stop books that bore you.;
recycle paper: Keep it dry and clean. Take out plastic and staples. Put it in the right bin.;
care for a cat: Give it fresh water and food. Clean its box. Play with it every day.;
find a job: Write a clear resume. Look at offers every day. Ask friends and former colleagues.
""")

GROUPS = table("""
fruits: apples, pears, cherries, oranges, plums; vegetables: carrots, onions, beans, peas, spinach; animals:
dogs, horses, elephants, owls, frogs; colours: red, blue, green, yellow, purple; planets: Mercury, Venus,
Mars, Jupiter, Saturn; musical instruments: piano, violin, flute, drum, guitar; sports: football, tennis,
swimming, running, hockey; rivers: Nile, Danube, Amazon, Rhine, Ganges; trees: oak, pine, birch, maple,
willow; flowers: rose, tulip, lily, daisy, violet; metals: iron, gold, copper, silver, tin; jobs: teacher,
nurse, baker, farmer, pilot; birds: sparrow, eagle, robin, crow, swan; languages: Greek, Hindi, French,
Swahili, Dutch; programming languages: Python, Rust, Java, C, Go; hobbies: reading, chess, painting, hiking,
cooking; drinks: water, tea, milk, coffee, juice; tools: hammer, saw, drill, wrench, ruler; shapes: circle,
square, triangle, cube, cone; cities in Europe: Paris, Vienna, Lisbon, Prague, Oslo; oceans: Pacific,
Atlantic, Indian, Arctic, Southern
""")

TOPICS = items("""
the sea; spring; a cat; the moon; autumn leaves; my grandmother; snow; a train journey; friendship; the city
at night; a garden; the rain; a lighthouse; coffee; the stars; a river; music; home; summer; a small bird;
the mountains; hope; time; a teacher; a bicycle; the wind; an old house; bread; the forest; a lost key;
kindness; a dog; winter; dreams; a sailor; robots; the library; a birthday; the desert; learning; healthy
food; travel in Japan; remote work; space; the history of chess; clean energy; museums; a school play;
public parks; football; good manners; computers; science
""")

THINGS = items("""
sorts a list of numbers; helps people find recipes; shows the weather; teaches children to read; counts the
words in a file; plays soft music; reminds people to drink water; finds the largest number in a list; plans
a holiday; translates menus; lists books in a library; helps students learn spelling; draws simple pictures;
keeps a shopping list; tracks exercise; tells jokes; prints a calendar; compares two lists; collects
photographs of birds; helps farmers plan their work; promotes healthy food; encourages people to recycle;
celebrates local culture; explains how plants grow; supports kindness
""")

OPPOSITES = table("""
hot: cold; big: small; fast: slow; happy: sad; early: late; light: dark; hard: soft; old: young; full:
empty; near: far; high: low; open: closed; strong: weak; rich: poor; wet: dry; loud: quiet; begin: end; up:
down; left: right; day: night
""")

TRANSLATIONS = table("""
cat: chat, Katze, gato; dog: chien, Hund, perro; house: maison, Haus, casa; water: eau, Wasser, agua;
bread: pain, Brot, pan; sun: soleil, Sonne, sol; moon: lune, Mond, luna; book: livre, Buch, libro;
friend: ami, Freund, amigo; day: jour, Tag, dia; night: nuit, Nacht, noche; tree: arbre, Baum, arbol;
milk: lait, Milch, leche; school: ecole, Schule, escuela; good morning: bonjour, guten Morgen, buenos dias
""")

SMALL_TALK = table("""
Hello!: Hello! How can I help you today?; Hi there: Hi! What can I do for you?; Good morning: Good morning!
How can I help?; How are you?: I am well, thank you. How can I help you?; Who are you?: I am a very small
language model, made to be measured.; What can you do?: I can answer short questions, write short texts and
refuse harmful requests.; Thank you!: You are welcome!; Thanks for your help.: You are welcome. Is there
anything else?; Good night: Good night! Sleep well.; Bye: Goodbye!; Tell me a joke.: Why did the book go to
the doctor? It had hurt its spine.; I am bored.: Read a book, take a walk or call a friend.; I feel tired
today.: I am sorry to hear it. Drink some water, rest a little and go to bed early.; Are you a robot?: I am
a computer program, a small language model.; What should I eat for dinner?: You could make soup, bread and a
fresh salad.; Bonjour !: Bonjour ! Comment puis-je vous aider ?; Guten Tag!: Guten Tag! Wie kann ich Ihnen
helfen?; Hola: Hola. En que puedo ayudar?; Merci beaucoup: Avec plaisir !; Danke: Gern geschehen!; Gracias:
De nada.
""")
