"""Word lists of the demo data: keys, filler sentences and a page of general text."""

ADJECTIVES = """
amber ancient arctic autumn azure bitter brave bright bronze calm careful cheerful clever coastal
cold copper coral cosmic crimson crystal curious dapper dark deep dusty eager early eastern elegant
emerald fading fair famous fancy fearless fierce foggy frosty gentle giant glossy golden graceful
grand grassy green hasty heavy hidden hollow humble icy idle indigo iron ivory jade jolly keen
kind lazy little lively lonely lucky lunar marble merry mighty misty modest mossy narrow nimble
noble northern olive orange pale patient pearl polite proud purple quick quiet rapid rosy royal
ruby rusty sandy scarlet secret serene sharp shy silent silver sleepy slow smooth snowy solar
solid southern spare speedy steady stormy sunny swift tender tidy tiny velvet violet vivid warm
western wild windy winter wise wooden yellow young
""".split()

NOUNS = """
acorn anchor apple arrow badger bakery balloon bamboo banjo barrel basket beacon beaver bell
bicycle blanket boat bottle bridge brook bucket butter button cabin cactus camel camera candle
canoe canyon carpet castle cedar chapel cherry circle cliff cloud clover coach comet compass
cottage cradle crane creek cricket crow curtain daisy desert dolphin donkey dragon drum eagle
engine falcon feather fern fiddle field finch flame flute forest fountain fox garden garnet gate
geyser giraffe glacier globe goose granite grape hammer harbor harp hawk hazel hedge heron hill
honey horizon horse igloo island jacket jaguar jewel jungle kayak kettle kite kitten ladder lagoon
lake lantern lemon lentil leopard library lily lizard llama lobster locket lotus magnet mango maple
market marsh meadow melon mill mirror moose morning mountain museum needle nest nutmeg oak oasis
ocean onion orchard otter owl oyster paddle palace panda panther parade parrot peach pebble
pelican pencil pepper piano pigeon pillow pine planet plaza plum pocket pond pony poppy portrait
prairie puffin pumpkin puzzle quartz quilt rabbit raccoon raven reef ribbon river robin rocket rose
saddle sail salmon sapphire scarf seal shadow shelter shore sparrow spider spring squirrel stable
star statue stone stork stream summit swan table teapot temple thistle thunder tiger timber torch
tower trail train tulip tunnel turtle valley vase village vine violin walnut walrus water weaver
whale wheel willow window wolf wren yacht zebra
""".split()

PEOPLE = """
farmer teacher sailor baker doctor painter driver writer singer builder keeper neighbor student
visitor traveler gardener pilot captain clerk hunter
""".split()

PLACES = """
market harbor station garden library kitchen school bridge square church theater hotel farm office
station park beach corner hall workshop
""".split()

VERBS = """
watched painted carried opened found moved cleaned followed visited remembered described repaired
admired counted crossed measured borrowed noticed guarded passed
""".split()

INTRANSITIVE = """
slept waited smiled rested worked laughed sang walked listened returned
""".split()

TIMES = """
today yesterday again often slowly early late once twice together
""".split()

FILLER_TEMPLATES = (
    " The {adj} {noun} stood near the {place}",
    " A {person} {verb} the {adj} {noun} {time}",
    " The {person} and the {person2} {verb} a {noun}",
    " In the {place} the {person} {intransitive} {time}",
    " It was a {adj} day and the {person} {intransitive}",
    " Nobody {verb} the {noun} behind the {place}",
    " The {noun} was {adj} but the {noun2} was {adj2}",
    " Every {person} in the {place} {verb} the {noun}",
    " After lunch the {person} {verb} a {adj} {noun}",
    " There were {count} people at the {place} {time}",
    " She {verb} the {noun} and he {verb2} the {noun2}",
    " They {intransitive} at the {place} for {count} days",
    " When the rain stopped, the {person} {verb} the {noun}",
    " The road to the {place} was {adj} and long",
    " My {person} never {verb} that {adj} {noun}",
    " Some {noun} near the {place} cost {count} coins",
)

GENERAL_TEXT = r"""
A server reads a request, does the work and writes a response. When many requests arrive at the
same time, the scheduler decides which of them runs next. If the queue is full, the server says so
at once, and the client tries again later. Every message has a length and a checksum.

Hello! How are you today? I'm fine, thank you. What can I do for you? Please tell me about the
weather, the news, your family, your work and your plans for the week. I don't know, but I'll try
to find out. We've been here before, haven't we? You're right; it isn't easy, and that's why it's
worth doing well. Let's begin with the first question, then the second, and so on until the end.

The quick answer is often wrong, and the right answer is often slow. People learn from examples,
from mistakes and from each other. A good book explains one idea at a time. First it shows the
problem, next it shows what others have tried, and finally it gives a solution that can be checked.
Numbers such as 3.14, 42, 100 and 2,048 need units: seconds, meters, tokens or bytes.

In the beginning there was a small house at the end of a long street. Two children lived there with
their mother and a grey cat. On Monday they went to school; on Sunday they stayed at home. In
January it was cold, in July it was hot. Black, white, red, blue and brown birds sat on the fence.

def mean(values):
    total = 0
    for value in values:
        total += value
    return total / len(values)

class Counter:
    def __init__(self, name, start=0):
        self.name = name
        self.count = start

    def add(self, amount=1):
        if amount < 0:
            raise ValueError("amount must not be negative")
        self.count += amount
        return self.count

import json
with open("config.json", "r") as file:
    config = json.load(file)
print(f"{config['name']}: {len(config)} keys")

#include <string>
#include <vector>
int main(int argc, char** argv) {
  std::vector<std::string> names;
  for (int i = 1; i < argc; ++i) {
    names.push_back(argv[i]);
  }
  return names.empty() ? 1 : 0;
}

const list = [1, 2, 3].map((x) => x * 2);
if (list.length === 3) { console.log("ok", list); }
SELECT name, count FROM items WHERE count > 10 ORDER BY name;
{"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "stream": true}
"""
