"""OpenAI's Python SDK against logit-fusion: presets, steering, logprobs and several choices.

Needs: pip install openai
"""

import math
import os

from openai import NotFoundError, OpenAI

client = OpenAI(
    base_url=os.environ.get("LOGIT_FUSION_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("LOGIT_FUSION_API_KEY", "none"),
)
QUESTION = "Extract name, count, item and city: In Sydney, Liam bought 28 tickets."

print("Presets:", ", ".join(model.id for model in client.models.list()))

# A preset says which experts steer, and how. The field `fusion` changes it for one request.
settings = {
    "the preset": {},
    "large alone": {"weighting": "none"},
    "proxy-tuning": {"weighting": "static", "alpha": 1.0},
    "expert alone": {"weighting": "alone"},
}
for name, fusion in settings.items():
    answer = client.chat.completions.create(
        model="giant-text",
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=48,
        extra_body={"fusion": fusion},
    )
    print(f"{name:>12}: {answer.choices[0].message.content}")

# Sampling parameters and logprobs are those of the fused distribution.
answer = client.chat.completions.create(
    model="giant-text",
    messages=[{"role": "user", "content": QUESTION}],
    n=2,
    seed=7,
    temperature=0.8,
    max_tokens=24,
    logprobs=True,
)
for choice in answer.choices:
    tokens = choice.logprobs.content if choice.logprobs and choice.logprobs.content else []
    mean = sum(token.logprob for token in tokens) / len(tokens)
    print(f"    choice {choice.index}: perplexity {math.exp(-mean):.1f}")

# An error names what was wrong, and what would be right.
try:
    client.chat.completions.create(model="gaint-text", messages=[{"role": "user", "content": QUESTION}])
except NotFoundError as error:
    print("     refused:", error.body["message"] if isinstance(error.body, dict) else error)
