"""Ask a running `gag serve` with LangChain (`pip install langchain-openai`): a chat model that routes."""

import os
import sys

from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    model="gag",  # routed; gag/DOMAIN asks one domain, gag/general the base alone
    base_url=os.environ.get("GAG_URL", "http://127.0.0.1:8080/v1"),
    api_key=os.environ.get("GAG_KEY", "none"),  # `gag serve --new-key NAME` where keys are asked for
)
question = " ".join(sys.argv[1:]) or "What is known of it?"
answer = model.invoke(question)
print(f"{answer.response_metadata['model_name']}: {answer.content}")
for piece in model.stream(question):
    print(piece.content, end="", flush=True)
print()
