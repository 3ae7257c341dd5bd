"""Drives an LLM API with the `openai` SDK, directly and through the tunnel in turn.

Run by `test_llm.py` with the interpreter that has the SDK:

    python llm_driver.py DIRECT-URL TUNNEL-URL HOST ROUNDS TOKENS

Prints one JSON object: for each way the medians in seconds, and what was seen. Any failure is an
exception, and so a non-zero exit code.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import urllib.error
import urllib.request

from openai import OpenAI

PROMPT = "Tell me a story about a token that travels through a tunnel."
STOP_LIMIT_S = 5.0


class Way:
    """One way to the API, and what its requests took."""

    def __init__(self, url: str, host: str) -> None:
        headers = {"Host": host} if host else {}
        self.client = OpenAI(
            base_url=f"{url}/v1", api_key="none", default_headers=headers, max_retries=0
        )
        self.models: list[float] = []
        self.complete: list[float] = []
        self.first: list[float] = []
        self.total: list[float] = []
        self.rate: list[float] = []

    def round(self, model: str, tokens: int) -> str:
        """List, complete and stream once; return the streamed text."""
        began = time.monotonic()
        names = [entry.id for entry in self.client.models.list()]
        self.models.append(time.monotonic() - began)
        assert model in names, f"{model} is not among {names}"

        # llama.cpp: go on to the number of tokens asked for, whatever the model wants to say.
        asked = {
            "model": model,
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": tokens,
            "temperature": 0,
            "extra_body": {"ignore_eos": True},
        }
        began = time.monotonic()
        answer = self.client.chat.completions.create(**asked)
        self.complete.append(time.monotonic() - began)
        assert answer.choices[0].message.content, "the completion is empty"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == tokens, answer.usage

        text = ""
        times: list[float] = []
        finish = None
        began = time.monotonic()
        for chunk in self.client.chat.completions.create(**asked, stream=True):
            if not chunk.choices:
                continue
            finish = chunk.choices[0].finish_reason or finish
            if piece := chunk.choices[0].delta.content:
                times.append(time.monotonic())
                text += piece
        assert finish is not None, "the stream was cut"
        # A token that is half a character comes with the next one, so a few may be missing.
        assert tokens * 0.8 <= len(times) <= tokens, f"{len(times)} pieces for {tokens} tokens"
        self.first.append(times[0] - began)
        self.total.append(times[-1] - began)
        self.rate.append((len(times) - 1) / (times[-1] - times[0]))
        return text

    def figures(self) -> dict[str, float]:
        """Return the medians."""
        names = ("models", "complete", "first", "total", "rate")
        return {name: statistics.median(getattr(self, name)) for name in names}


def busy(direct: str) -> bool | None:
    """Tell whether llama.cpp's server works on an answer; None if the API cannot be asked."""
    try:
        with urllib.request.urlopen(f"{direct}/slots", timeout=5) as answer:
            return any(slot["is_processing"] for slot in json.load(answer))
    except (urllib.error.HTTPError, ValueError, KeyError, TypeError):
        return None


def stop_time(way: Way, direct: str, model: str) -> float | None:
    """Leave in the middle of a long answer; return how long the model went on, if it can be seen.

    Raises:
        AssertionError: it did not stop.
    """
    stream = way.client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": PROMPT}],
        max_tokens=1500,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    for count, _ in enumerate(stream):
        if count == 5:
            break
    if busy(direct) is None:
        stream.close()
        return None
    assert busy(direct), "the answer was over before we left"
    left = time.monotonic()
    stream.close()
    while busy(direct):
        assert time.monotonic() - left < STOP_LIMIT_S, "the model went on after the caller left"
        time.sleep(0.01)
    return time.monotonic() - left


def main() -> None:
    """See the top of this file."""
    direct_url, tunnel_url, host, rounds, tokens = sys.argv[1:]
    direct, tunnel = Way(direct_url, ""), Way(tunnel_url, host)
    model = next(iter(direct.client.models.list())).id
    direct.round(model, int(tokens))  # the first fills the prompt cache
    same = 0
    for _ in range(int(rounds)):
        texts = {way.round(model, int(tokens)) for way in (direct, tunnel)}
        same += len(texts) == 1
    result = {
        "model": model,
        "direct": direct.figures(),
        "tunnel": tunnel.figures(),
        "same_text": same,
        "stop_s": stop_time(tunnel, direct_url, model),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
