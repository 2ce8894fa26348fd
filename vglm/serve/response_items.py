"""The items of a response's output, made of the model's text piece by piece, and the events that tell of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vglm.serve.tool_calls import CallNews, Piece

Event = dict[str, Any]  # without its sequence number


class OutputItems:
    """What the model has written so far: messages and calls of functions, in the order of its text."""

    def __init__(self, answer_id: str) -> None:
        self._id = answer_id
        self.items: list[dict[str, Any]] = []
        self._open = False  # whether the last item may grow

    def add(self, pieces: Sequence[Piece]) -> list[Event]:
        """Take in what the model has written; returns the events that tell of it."""
        events: list[Event] = []
        for piece in pieces:
            if isinstance(piece, CallNews):
                self._add_call(piece, events)
            elif piece:
                self._add_text(piece, events)
        return events

    def finish(self, complete: bool) -> list[Event]:
        """Close the last item; an answer without a word is a message without text."""
        events: list[Event] = []
        if not self.items:
            self._begin_message(events)
        self._close(events, "completed" if complete else "incomplete")
        return events

    def cut_short(self) -> list[Event]:
        """Close the last item where it is, if there is one: the answer ends before its end."""
        events: list[Event] = []
        self._close(events, "incomplete")
        return events

    def _add_text(self, text: str, events: list[Event]) -> None:
        if not (self._open and self.items[-1]["type"] == "message"):
            self._begin_message(events)
        message = self.items[-1]
        message["content"][0]["text"] += text
        events.append(self._event("response.output_text.delta", content_index=0, delta=text, logprobs=[]))

    def _add_call(self, news: CallNews, events: list[Event]) -> None:
        if news.begins:
            call = {"type": "function_call", "id": f"fc_{self._id}-{len(self.items)}"}
            call |= {"call_id": news.call.id, "name": news.call.name, "arguments": ""}
            self._begin(call, events)
        if news.arguments:
            self.items[-1]["arguments"] += news.arguments
            events.append(self._event("response.function_call_arguments.delta", delta=news.arguments))

    def _begin_message(self, events: list[Event]) -> None:
        message = {"type": "message", "id": f"msg_{self._id}-{len(self.items)}", "role": "assistant"}
        self._begin({**message, "content": []}, events)
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self.items[-1]["content"] = [part]
        events.append(self._event("response.content_part.added", content_index=0, part=dict(part)))

    def _begin(self, item: dict[str, Any], events: list[Event]) -> None:
        self._close(events, "completed")
        self.items.append({**item, "status": "in_progress"})
        self._open = True
        events.append(self._item_event("response.output_item.added"))

    def _close(self, events: list[Event], status: str) -> None:
        if not self._open:
            return
        self._open = False
        item = self.items[-1]
        item["status"] = status
        if item["type"] == "message":
            (part,) = item["content"]
            text = {"content_index": 0, "text": part["text"], "logprobs": []}
            events.append(self._event("response.output_text.done", **text))
            events.append(self._event("response.content_part.done", content_index=0, part=part))
        else:
            arguments = {"name": item["name"], "arguments": item["arguments"]}
            events.append(self._event("response.function_call_arguments.done", **arguments))
        events.append(self._item_event("response.output_item.done"))

    def _event(self, kind: str, **fields: Any) -> Event:
        index = len(self.items) - 1
        return {"type": kind, "item_id": self.items[index]["id"], "output_index": index, **fields}

    def _item_event(self, kind: str) -> Event:
        return {"type": kind, "output_index": len(self.items) - 1, "item": dict(self.items[-1])}
