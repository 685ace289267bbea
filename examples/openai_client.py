"""Ask a running `gag serve` with OpenAI's own client (`pip install openai`)."""

import argparse

from openai import OpenAI


def main() -> None:
    """Ask once whole and once as a stream, and show what GAG tells beside the answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", default="What medium holds Vax-Hebe?")
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--key", default="none")
    args = parser.parse_args()
    client = OpenAI(base_url=args.url, api_key=args.key)
    print("models:", ", ".join(model.id for model in client.models.list()))

    turns = [{"role": "user", "content": args.question}]
    answer = client.chat.completions.create(model="gag", messages=turns)
    told = answer.model_extra["gag"]
    print(f"{answer.choices[0].message.content}  [{answer.model}: {told['route']['reason']}]")

    stream = client.chat.completions.create(
        model="gag", messages=turns, stream=True, extra_body={"gag": {"background": True}}
    )
    for chunk in stream:
        for choice in chunk.choices:
            told = (choice.delta.model_extra or {}).get("reasoning_content")
            if told:  # what the expert writes, before the base answers
                print(f"({told})", end=" ", flush=True)
            if choice.delta.content:
                print(choice.delta.content, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
