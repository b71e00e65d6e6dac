"""Recipes made of the members that are loaded anyway: contrastive decoding, DExperts, a reward model, a chat format.

Needs: pip install openai, and a server: logit-fusion serve --config zoo/recipes.yaml
"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("LOGIT_FUSION_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("LOGIT_FUSION_API_KEY", "none"),
)
question = [{"role": "user", "content": "Give the last of these words: cup nose nail dress"}]

for preset in ("giant", "giant-contrast", "giant-dexperts", "giant-reward"):
    made = client.chat.completions.create(model=preset, messages=question, temperature=0, max_tokens=16)
    print(f"{preset}: {made.choices[0].message.content.strip()}")

# The large model completes plain text, as a base model would; the expert and what it is compared with read the question
# in the chat format that the expert was taught.
text = f"Question: {question[0]['content']}\nAnswer:"
own = {"prompts": {"text": {"with": question, "against": question}}}
for name, preset, fusion in (("plain text", "giant", {}), ("chat format", "giant-text", own)):
    completion = client.completions.create(
        model=preset, prompt=text, temperature=0, max_tokens=16, stop="\n", extra_body={"fusion": fusion}
    )
    print(f"{name}: {completion.choices[0].text.strip()}")
