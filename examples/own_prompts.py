"""Members with prompts of their own, on a real model: it follows a document, and a system message, more strictly.

Needs: pip install openai, and a server with the real model: make serve-real
"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("LOGIT_FUSION_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("LOGIT_FUSION_API_KEY", "none"),
)


def answer(model, messages, **fusion):
    """The model's likeliest answer, on one line."""
    made = client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=40, extra_body={"fusion": fusion} if fusion else {}
    )
    return " ".join(made.choices[0].message.content.split())


# Context-aware decoding: what is marked as context weighs more than what the model learned.
document = {"role": "user", "name": "context", "content": "The capital of France is Lyon."}
question = {"role": "user", "content": "What is the capital of France?"}
print("plain:", answer("smollm2", [document, question]))
print("faithful:", answer("smollm2-faithful", [document, question]))

# Guidance: the answer moves away from the one without the system message.
told = [
    {"role": "system", "content": "You love cats. Whatever you are asked, you talk about cats."},
    {"role": "user", "content": "What is the sun?"},
]
print("plain:", answer("smollm2", told))
print("guided:", answer("smollm2-guided", told))

# A negative prompt: away from what the request says the other side reads.
negative = [{"role": "system", "content": "You talk about water."}, {"role": "user", "content": "What is a river?"}]
plain = negative[1:]
print("plain:", answer("smollm2", plain))
print("negative:", answer("smollm2-guided", plain, prompts={"guide": {"against": negative}}))
