"""What holds an answer: the grammar of its format and of its tool calls, and from where on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from tokenspeed.core.constraint import Constraint
from tokenspeed.errors import RequestError
from tokenspeed.generation.request import ChatPrompt, GenerationRequest, ToolUse
from tokenspeed.generation.style import Style
from tokenspeed.text.formats import Format
from tokenspeed.text.grammar import Grammars, grammar_source
from tokenspeed.text.parsing.lark import quote
from tokenspeed.text.parsing.parts import Tool
from tokenspeed.text.parsing.thinking import Think, think_rules
from tokenspeed.text.tokenizer import Tokenizer
from tokenspeed.text.trigger import Trigger

MOST_CALLS = 64  # in one answer, where several are allowed: else one could go on calling for ever
# Between the answer and a thinking before it of which the grammar sees nothing.
SPACE = "before: /[ \\n]{0,4}/\n"

MakeConstraint = Callable[[], Constraint]


class Hold(NamedTuple):
    """A grammar, and what says where it begins to hold; None: with the first token."""

    source: str
    trigger: Callable[[], Trigger] | None


class Holder:
    """Makes the constraints of answers for one model."""

    def __init__(self, grammars: Grammars, style: Style, tokenizer: Tokenizer) -> None:
        self._grammars = grammars
        self._style = style
        self._tokenizer = tokenizer
        self._table = tokenizer.table(skip_special=False)

    def hold(self, request: GenerationRequest, *, opened: bool) -> Hold | None:
        """What the answer is held to, if it begins amid its thinking (`opened`) or not; None: to nothing."""
        tools, wanted = request.tools, request.format
        if tools is None and wanted is None:
            return None
        if tools is not None:
            tools = self._lenient(tools)
        chat = isinstance(request.prompts[0], ChatPrompt)
        think = self._style.think if chat and not opened else None
        free = tools is not None and not tools.required and wanted is None
        before = SPACE if opened else "" if think is None else self._thinking(think)
        try:
            source = self._source(tools, wanted, "" if free else before)
        except RequestError as error:
            raise named(request, error) from None
        return Hold(source, self._trigger(tools, free, opened))

    def knows(self, hold: Hold) -> bool:
        """Whether `follow` takes no time."""
        return self._grammars.knows(hold.source)

    def follow(self, request: GenerationRequest, hold: Hold, *, opened: bool) -> MakeConstraint:
        """Compile it. What cannot be held to is an error of the request, but for tools that are not strict:
        any object is taken for the arguments of such a one."""
        try:
            return self._grammars.follow(hold.source, hold.trigger)
        except RequestError as error:
            loosened = self._loosened(request)
            if loosened is None:
                raise named(request, error) from None
        again = self.hold(loosened, opened=opened)
        assert again is not None
        try:
            return self._grammars.follow(again.source, again.trigger)
        except RequestError as error:
            raise named(request, error) from None

    def _thinking(self, think: Think) -> str:
        """Rules of which `before` is the thinking that an answer may begin with."""
        return think_rules(think, opened=False, mark=self._mark) + "before: think\n"

    def _source(self, tools: ToolUse | None, wanted: Format | None, before: str) -> str:
        """The grammar of an answer, with the rules of what may come `before` it. Where it begins to hold amid
        the answer it sees nothing of what was there."""
        rules, ways = before, []
        if tools is not None:
            most = 1 if tools.only is not None or not tools.parallel else MOST_CALLS
            rules += self._style.family.calls(_callable(tools), most=most, mark=self._mark)
            ways.append("calls")
        if wanted is not None and not (tools is not None and tools.required):
            ways.append("@answer")
        start = f"{'before ' if before else ''}({' | '.join(ways)})"
        return grammar_source(f"start: {start}\n{rules}", wanted)

    def _trigger(self, tools: ToolUse | None, free: bool, opened: bool) -> Callable[[], Trigger] | None:
        style = self._style
        think = None if style.think is None else style.think.marks
        if not free:
            return partial(Trigger, self._table, think=think, thinking=True) if opened else None
        openers, starts = style.family.openers, style.family.starts(tools.tools if tools else ())
        return partial(Trigger, self._table, openers=openers, starts=starts, think=think, thinking=opened)

    def _mark(self, spelling: str) -> str:
        """The term of a mark: a special token has a number, for it is no text."""
        token = self._tokenizer.token_id(spelling)
        special = token is not None and token in self._tokenizer.special_ids
        return f"<[{token}]>" if special else quote(spelling)

    def _lenient(self, tools: ToolUse) -> ToolUse:
        """The tools as far as their schemas can be held to, where these need not be held to the letter."""
        return replace(tools, tools=tuple(map(_lenient, tools.tools)))

    def _loosened(self, request: GenerationRequest) -> GenerationRequest | None:
        """The request with any object for the arguments of tools that cannot be held to, if it has such."""
        if request.tools is None:
            return None
        tools = tuple(
            tool if tool.strict or self._can_follow(tool) else _any(tool) for tool in request.tools.tools
        )
        if tools == request.tools.tools:
            return None
        return replace(request, tools=replace(request.tools, tools=tools))

    def _can_follow(self, tool: Tool) -> bool:
        rules = self._style.family.calls([_lenient(tool)], most=1, mark=self._mark)
        try:
            self._grammars.follow(grammar_source(f"start: calls\n{rules}", None))
        except RequestError:
            return False
        return True


def _callable(tools: ToolUse) -> list[Tool]:
    return [tool for tool in tools.tools if tools.only in (None, tool.name)]


def _lenient(tool: Tool) -> Tool:
    parameters = {key: value for key, value in tool.parameters.items() if key != "x-guidance"}
    if not tool.strict:
        parameters["x-guidance"] = {"lenient": True}
    return replace(tool, parameters=parameters)


def _any(tool: Tool) -> Tool:
    return replace(tool, parameters={"type": "object"})


def named(request: GenerationRequest, error: RequestError) -> RequestError:
    """The error with the field that it is about."""
    name = request.name("tools" if request.format is None else "format")
    return RequestError(f"{name} {error}", param=name, code=error.code)
