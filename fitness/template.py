"""TEMPLATE: copy this file, edit it, name its path in a recipe's `fitness:` list. Nothing to register.

A fitness takes the model and the name of a split, and returns a number, a list of numbers (one an example: best, since
then the report has intervals), or a dict of either. Higher is better. `split` is "search" while the search runs, and
"final" once, for the report: use other rows for it.

The model is the base wearing one individual. It can do two things, and greedily so:
    model.generate(["2 + 2 ="], max_new_tokens=4, stop=["\\n"])      -> [" 4"]
    model.loglikelihood([("2 + 2 =", " 4"), ("2 + 2 =", " 5")])      -> [-0.7, -3.9]   (nats)
    model.chat("What is 2 + 2?")     -> the prompt that the model's chat template makes of it
"""

from collections.abc import Sequence

from evomerge import Model

ROWS = {
    "search": [("The opposite of hot is", "cold"), ("The opposite of big is", "small")],
    "final": [("The opposite of fast is", "slow"), ("The opposite of dark is", "light")],
}


def fitness(model: Model, split: str) -> Sequence[float]:
    """Score one row 1.0 if the word is the first that the model says."""
    prompts = [prompt for prompt, _ in ROWS[split]]
    texts = model.generate(prompts, max_new_tokens=4)
    return [float(text.strip().startswith(word)) for text, (_, word) in zip(texts, ROWS[split], strict=True)]


# With rows in JSON Lines files and a shipped scorer, it is shorter still:
#
#     from evomerge import Data, Generation
#
#     fitness = Generation(
#         data=Data.files(train="train.jsonl", search="search.jsonl", final="final.jsonl"),
#         prompt="Question: {question}\\nAnswer:",
#         answer=" {answer}",
#     )
