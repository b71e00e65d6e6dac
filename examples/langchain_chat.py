"""LangChain against logit-fusion: a chain whose model is steered by an expert, and an answer of a given shape.

Needs: pip install langchain-openai
"""

import os

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Purchase(BaseModel):
    """Who bought how much of what, and where."""

    name: str
    count: int
    item: str
    city: str

    @classmethod
    def read(cls, answer: str) -> "Purchase":
        """Read `name: Liam; count: 28; item: tickets; city: Sydney`."""
        return cls.model_validate(dict(part.split(": ") for part in answer.split("; ")))


# The form that the expert was trained on. As a grammar it holds whatever the models think.
FORM = r"name: [A-Z][a-z]+; count: [0-9]+; item: [a-z]+( [a-z]+)?; city: [A-Z][a-z]+( [A-Z][a-z]+)?"

model = ChatOpenAI(
    model="giant-text",
    base_url=os.environ.get("LOGIT_FUSION_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("LOGIT_FUSION_API_KEY", "none"),
    temperature=0,
    max_tokens=128,
    extra_body={"fusion": {"weighting": "kl"}},
)

chain = ChatPromptTemplate.from_template("What is the last word of: {words}") | model | StrOutputParser()
for answer in chain.batch([{"words": "green lamp paper"}, {"words": "moon tree river"}]):
    print(answer)

extract = model.bind(extra_body={"structured_outputs": {"regex": FORM}}) | StrOutputParser() | Purchase.read
print(extract.invoke("Extract name, count, item and city: In Sydney, Liam bought 28 tickets."))
