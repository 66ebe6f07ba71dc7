"""The wordings of questions about a scene, by what is asked. Data only.

{p} and {q} are region names, {list} several of them, {x} and {y} words.
"""

QUESTIONS = {
    "color": (
        "What is the color of {p}?",
        "What color is {p}?",
        "Which color does {p} have?",
        "What is {p}'s color?",
        "Tell me the color of {p}.",
        "What color is the object in {p}?",
        "Which color best describes {p}?",
        "The color of {p} is",
        "What is the main color of {p}?",
        "What is the dominant color of the object marked as {p}?",
    ),
    "shape": (
        "What is the shape of {p}?",
        "What shape is {p}?",
        "Which shape does {p} have?",
        "What shape does the object in {p} have?",
        "What is {p}'s shape?",
        "Which shape best describes {p}?",
        "What geometric form does {p} have?",
        "How is {p} shaped?",
        "Name the shape of {p}.",
    ),
    "material": (
        "What material is {p} made of?",
        "What is {p} made of?",
        "What is the material of {p}?",
        "Which material is {p} made from?",
        "Which material does {p} consist of?",
        "What is the most likely material of {p}?",
        "What kind of surface does {p} have, by its material?",
        "Tell me the material of {p}.",
        "Of what material is the object in {p}?",
    ),
    "pattern": (
        "What is the pattern of {p}?",
        "What pattern does {p} have?",
        "What is the texture of {p}?",
        "What texture or pattern is on {p}?",
        "Which pattern is on the surface of {p}?",
        "What is the texture/pattern of {p}?",
        "What kind of pattern does the surface of {p} show?",
        "How is the surface of {p} patterned?",
        "Describe the pattern on {p} in a word.",
    ),
    "category": (
        "What is {p}?",
        "What kind of thing is {p}?",
        "What object is {p}?",
        "What is the object in {p}?",
        "What does {p} show?",
        "Which category does {p} belong to?",
        "Name the object marked by {p}.",
        "What type of object is {p}?",
    ),
    "size": (
        "Is {p} small or large?",
        "What is the size of {p}?",
        "What size is {p}?",
        "Is {p} a small or a large object?",
        "How big is {p}, small or large?",
        "Compared to the other things, is {p} small or large?",
    ),
}
WHICH = (
    "Which one of {list} is {x}?",
    "Which of {list} is {x}?",
    "Among {list}, which one is {x}?",
    "Which one among {list} is {x}?",
)
FRAMES = ("It is {x}", "It's {x}", "{p} is {x}", "The object is {x}", "The masked object is {x}", "{x}")
# Wrong options that no thing in any scene fits.
FOREIGN = {
    "shape": ("a pyramid", "pyramid", "flat and thin", "a triangular prism", "hexagonal"),
    "material": ("wood", "fabric", "paper", "leather", "stone", "wool"),
    "pattern": ("zigzag", "floral", "wavy lines", "camouflage", "a leopard print"),
}
BACKDROP = {"table", "shelf", "house"}  # what a room may have anyway: never asked whether it is there

SIDE = (
    "Is {p} to the left or to the right of {q}?",
    "Is {p} on the left or right side of {q}?",
    "Is {p} left or right of {q}?",
    "On which side of {q} is {p}?",
    "Which side of {q} is {p} on, left or right?",
    "Relative to {q}, is {p} on the left or on the right?",
    "Seen from the camera, does {p} stand left or right of {q}?",
    "Is {p} located to the left or to the right of {q}?",
)
DEPTH = (
    "Is {p} in front of or behind {q}?",
    "Is {p} in front of {q} or behind it?",
    "Is {p} closer to the camera than {q} or farther away?",
    "Is {p} nearer to the viewer than {q}, or further away?",
    "Compared to {q}, is {p} in front or behind?",
    "Does {p} stand in front of {q} or behind {q}?",
    "Relative to {q}, is {p} in front or behind?",
)
WHERE = (
    "Where is {p} relative to {q}?",
    "Where is {p} with respect to {q}?",
    "How is {p} positioned relative to {q}?",
    "What is the position of {p} in relation to {q}?",
    "Where is {p}, seen from {q}?",
)
BETWEEN = (
    "What is the spatial relationship between {p} and {q}?",
    "What is the spatial relation of {p} to {q}?",
    "What is the relationship between {p} and {q}?",
    "What is the relation between {p} and {q}?",
    "How do {p} and {q} relate to each other in space?",
)
STATEMENT = (
    "Which statement about {p} and {q} is true?",
    "Which of these statements about {p} and {q} is correct?",
    "Which of the following is right for {p} and {q}?",
    "What is the spatial relationship between {p} and {q}?",
)
EXTREME = {
    "left": ("Which one of {list} is the leftmost?", "Which of {list} is furthest to the left?"),
    "right": ("Which one of {list} is the rightmost?", "Which of {list} is furthest to the right?"),
    "front": ("Which one of {list} is the closest to the camera?", "Which of {list} is nearest to the viewer?"),
    "back": ("Which one of {list} is the farthest from the camera?", "Which of {list} is furthest away?"),
}
ONLY = {  # which one of several differs by its kind
    "reflection": (
        "Which one among {list} is in the mirror?",
        "Which one of {list} is a reflection?",
        "Which of {list} is seen in the mirror?",
        "Among {list}, which one is a mirror image?",
        "Which region is only a reflection: {list}?",
        "Which one among {list} is not a real object but a reflection?",
    ),
    "picture": (
        "Which one among {list} is in a framed picture?",
        "Which one of {list} is inside the picture on the wall?",
        "Which of {list} is only painted in a frame?",
        "Among {list}, which one is part of a framed picture?",
        "Which one among {list} is not real but in a picture?",
    ),
    "object": (
        "Which one among {list} is a real object?",
        "Which one of {list} is real?",
        "Among {list}, which one is neither a reflection nor a picture?",
    ),
}
KIND = {
    "reflection": (
        "Is {p} a reflection or a real object?",
        "Is {p} a real object or a reflection in the mirror?",
        "Is {p} real, or is it in the mirror?",
        "Is what {p} shows a real object or a mirror image?",
    ),
    "picture": (
        "Is {p} a real object or in a framed picture?",
        "Is {p} real, or part of a framed picture?",
        "Is {p} inside a framed picture or a real object?",
        "Is what {p} shows real or in a picture on the wall?",
    ),
}
WHETHER_KIND = {
    "reflection": ("Is {p} in the mirror?", "Is {p} a reflection?", "Is {p} seen in a mirror?"),
    "picture": ("Is {p} in a framed picture?", "Is {p} part of a picture on the wall?", "Is {p} in a picture frame?"),
}
SOURCE = (
    "Which one among {list} is the reflection of {p}?",
    "Which of {list} shows {p} in the mirror?",
    "Among {list}, which one is the mirror image of {p}?",
)
MIRRORED = (
    "Which one among {list} is reflected as {p}?",
    "{p} is the reflection of which one: {list}?",
    "Which of {list} is the real object that {p} reflects?",
)
POSITION = (
    "Counting the {x} from {y} to {z}, which position does {p} have?",
    "From {y} to {z}, which position is {p} in among the {x}?",
    "Counting the {x} from the {y}, which position does {p} have?",
    "Counting the {x} from the {y}, what position is {p} in?",
    "Among the {x}, which position from the {y} is {p}?",
    "What is the position of {p}, counting the {x} from the {y}?",
    "If you count the {x} from the {y}, which one is {p}?",
    "From the {y}, in which place is {p} among the {x}?",
    "Which place does {p} take when the {x} are counted from the {y}?",
)
POSITION_AMONG = (
    "Counting {list} from {y} to {z}, what is the position of {p}?",
    "Among {list}, counting from the {y}, which position does {p} have?",
    "Counting {list} from the {y}, which position does {p} have?",
    "Order {list} from the {y}: which place has {p}?",
)
NTH = (
    "Which one of {list} is the {x} from the {y}?",
    "Among {list}, which one is {x} from the {y}?",
    "Counting from the {y}, which one of {list} is the {x}?",
)
PLACES = (
    *("{x}", "{x}", "{n}", "the {x}", "the {n}", "the {x} from the {y}", "{x} from the {y}", "{n} from the {y}"),
    *("{x} position", "it is the {x}", "in {x} place", "position {k}", "{k}", "{k}"),
)
HOW_MANY = (
    "How many {x} are in the picture?",
    "How many {x} are there in the image?",
    "How many {x} do you see?",
    "Count the {x} in the picture.",
    "What is the number of {x} in the image?",
)
HOW_MANY_OF = (
    "How many of {list} are {x}?",
    "How many of the regions {list} are {x}?",
    "Of the marked regions {list}, how many are {x}?",
    "Among {list}, how many are {x}?",
)
IS_THERE = (
    "Is there {x} in the picture?",
    "Is there {x} in the image?",
    "Does the picture show {x}?",
    "Can you see {x} in the image?",
    "Is {x} anywhere in the picture?",
)
WHICH_THERE = ("Which of these is in the picture?", "Which of the following can be seen in the image?")
WHICH_ABSENT = (
    "Which of these is not in the picture?",
    "Which of the following is absent from the image?",
    "What can not be seen in the picture?",
)
SAME = (
    "Do {p} and {q} have the same {x}?",
    "Is the {x} of {p} the same as that of {q}?",
    "Are {p} and {q} the same in {x}?",
    "Do {p} and {q} share the same {x}?",
    "Does {p} have the same {x} as {q}?",
)
SAME_AS = (
    "Which one of {list} has the same {x} as {p}?",
    "Among {list}, which one shares its {x} with {p}?",
    "Which of {list} matches {p} in {x}?",
)
LARGER = (
    "Is {p} larger or smaller than {q}?",
    "Is {p} bigger or smaller than {q}?",
    "Compared to {q}, is {p} larger or smaller?",
    "What is the size of {p} compared to {q}, larger or smaller?",
)
SHORT = (
    "Describe {p} briefly.",
    "Describe {p} in a few words.",
    "Give a short caption for {p}.",
    "Write a short description of {p}.",
    "Caption {p}.",
    "Briefly, what does {p} look like?",
    "Describe the masked region {p} briefly.",
)
DETAILED = (
    "Describe {p} in detail.",
    "Describe this masked region in detail: {p}",
    "Describe the masked region {p} in detail.",
    "Give a detailed description of {p}.",
    "What can you say about {p}? Describe it in detail.",
    "Write a detailed caption for {p}.",
    "Describe {p} and where it is in detail.",
)
RELATIONAL = (
    "Describe {p} in detail, including the relationship with {q}.",
    "Describe {p} in detail, including its relationship with {q}.",
    "Describe {p} and its relation to {q}.",
    "Describe {p} in detail and say how it relates to {q}.",
    "Give a detailed description of {p}, including where it is relative to {q}.",
    "Write a caption for {p} that mentions its relationship to {q}.",
)
