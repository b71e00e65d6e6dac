"""Two settings of one question, streamed at once; beside every piece of text the expert that moved it.

Needs: pip install openai
"""

import asyncio
import os

from openai import AsyncOpenAI

client = AsyncOpenAI(
    base_url=os.environ.get("LOGIT_FUSION_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("LOGIT_FUSION_API_KEY", "none"),
)
QUESTION = "Which country is Ilirska Bistrica in?"


async def ask(weighting: str) -> list[str]:
    """Stream one answer; a line for each token with the text, the expert with the largest weight, and the weight."""
    stream = await client.chat.completions.create(
        model="giant-all",
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=16,
        logprobs=True,
        stream=True,
        extra_body={"fusion": {"weighting": weighting, "trace": True}},
    )
    texts: list[str] = []
    movers: list[str] = []
    async for chunk in stream:
        for choice in chunk.choices:
            # Text and trace of a token may come in different chunks: the first trace comes with the role.
            if choice.logprobs and choice.logprobs.content:
                texts += [token.token for token in choice.logprobs.content]
            fusion = (choice.model_extra or {}).get("fusion", {"token_ids": [], "alpha": {}})
            for i in range(len(fusion["token_ids"])):
                alphas = {name: row[i] for name, row in fusion["alpha"].items()}
                name = max(alphas, key=lambda expert: abs(alphas[expert]), default="large")
                movers.append(f"{name} {alphas.get(name, 0.0):.2f}")
    return [f"{text!r:>14}  {mover}" for text, mover in zip(texts, movers, strict=True)]


async def main() -> None:
    """Ask both ways, in one batch of the engine."""
    weightings = ("none", "kl")
    for weighting, lines in zip(weightings, await asyncio.gather(*map(ask, weightings)), strict=True):
        print(f"{weighting}:", *lines, sep="\n")


asyncio.run(main())
