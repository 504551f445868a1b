"""The application: what is drawn where, and what the keys do."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import ContentSwitcher, DataTable, Footer, Input, Static

from instainfer.cli.output import safe
from instainfer.cli.top import draw
from instainfer.cli.top.follow import FINAL, Follower
from instainfer.cli.top.picture import SORTS, Picture
from instainfer.cli.why import lines as why_lines
from instainfer.client import Client
from instainfer.errors import InstaInferError

#: Seconds of the timeline.
SPANS = (10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


class Told(Message):
    """By the feed's thread."""

    def __init__(self, what: dict[str, Any] | InstaInferError) -> None:
        super().__init__()
        self.what = what


class Why(ModalScreen[None]):
    """Why one call was as it was."""

    CSS = """
    Why { align: center middle; }
    Why VerticalScroll { width: 90%; height: 80%; border: round $primary; padding: 0 1; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter", "dismiss_why", "close")]

    def __init__(self, client: Client, activation: str) -> None:
        super().__init__()
        self.client, self.activation = client, activation

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(Text(f"why {safe(self.activation)} …"), id="why")

    def on_mount(self) -> None:
        self.ask()

    @work(thread=True, exit_on_error=False)
    def ask(self) -> None:
        """In a thread: the server replays what it did, which takes a while."""
        try:
            told = why_lines(self.client.why(self.activation), full="█", paint=lambda text, **_: text)
            text = "\n".join(map(safe, itertools.chain.from_iterable(line.split("\n") for line in told)))
        except InstaInferError as error:
            text = "\n".join(safe(line) for line in (error.message, error.hint) if line)
        self.app.call_from_thread(self.show, Text(text))

    def show(self, text: Text) -> None:
        if self.is_attached:  # it may be closed by now
            self.query_one("#why", Static).update(text)

    def action_dismiss_why(self) -> None:
        self.dismiss(None)


class Top(App[InstaInferError]):
    """`run` gives the error that ended it, or None where somebody left."""

    CSS = """
    #head { height: 2; padding: 0 1; background: $panel; }
    #pages { height: 1fr; }
    #now, #timeline { padding: 0 1; }
    #changes { margin-top: 1; }
    #calls { height: 35%; border-top: solid $panel; }
    #filter { display: none; }
    #filter.shown { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("p,space", "pause", "pause", key_display="p"),
        Binding("enter", "why", "why"),  # the list of calls has the key first, and does it
        Binding("t", "page", "now/timeline"),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("s", "sort", "sort"),
        Binding("plus,equals_sign", "zoom(-1)", "zoom in", key_display="+"),
        Binding("minus", "zoom(1)", "zoom out", key_display="-"),
        Binding("escape", "unfilter", show=False),
    ]
    ENABLE_COMMAND_PALETTE = False
    TITLE = "instainfer"

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.client = client
        self.picture = Picture()
        self.shown = self.picture  # what is drawn: a copy while it is paused
        self.wanted = ""
        self.sort = SORTS[0]
        self.span = 60.0
        self.laid_out = False
        self._follower = Follower(client, lambda what: self.post_message(Told(what)))

    @property
    def paused(self) -> bool:
        return self.shown is not self.picture

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        with ContentSwitcher(initial="now", id="pages"):
            with VerticalScroll(id="now"):
                yield Static(id="containers")
                yield Static(id="changes")
            with VerticalScroll(id="timeline"):
                yield Static(id="rows")
        yield DataTable(id="calls", cursor_type="row", zebra_stripes=False)
        yield Input(placeholder="part of a function's name", id="filter")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        calls = self.query_one("#calls", DataTable)
        calls.add_columns(*draw.CALL_HEADERS)
        calls.focus()
        self.laid_out = True
        self._follower.start()
        self.redraw()

    def on_unmount(self) -> None:
        self._follower.stop()

    def on_resize(self) -> None:
        self.redraw()

    def on_told(self, message: Told) -> None:
        if not isinstance(message.what, InstaInferError):
            self.picture.take(message.what)
        elif isinstance(message.what, FINAL):
            self.exit(message.what)
            return
        else:
            self.picture.lost(f"{message.what.message}; trying again")
        self.redraw()

    # ---- drawing -------------------------------------------------------------------------------------------

    def redraw(self) -> None:
        if not self.laid_out:
            return
        base = self.screen_stack[0]
        shown, width = self.shown, max(self.size.width - 4, 1)  # without padding and scroll bar
        base.query_one("#head", Static).update(draw.head(shown, self.client.where, paused=self.paused))
        if base.query_one("#pages", ContentSwitcher).current == "now":
            base.query_one("#containers", Static).update(draw.containers(shown, width, self.wanted))
            base.query_one("#changes", Static).update(draw.changes(shown, width, self.wanted))
        else:
            drawn = draw.timeline(shown, width, self.span, self.wanted, self.sort)
            base.query_one("#rows", Static).update(drawn)
        self._list(base.query_one("#calls", DataTable))

    def _list(self, calls: DataTable[Text]) -> None:
        """The chosen row stays chosen, unless it is the newest: that one follows the newest."""
        found = self.shown.calls(self.wanted)
        if [one["id"] for one in found] == [row.value for row in calls.rows]:
            return
        chosen = list(calls.rows)[calls.cursor_row].value if 0 < calls.cursor_row < len(calls.rows) else None
        calls.clear()
        for one in found:
            if one["id"] not in calls.rows:
                calls.add_row(*draw.call(one), key=one["id"])
        if chosen is not None and chosen in calls.rows:
            calls.move_cursor(row=calls.get_row_index(chosen))

    # ---- keys ----------------------------------------------------------------------------------------------

    def action_why(self) -> None:
        self.query_one("#calls", DataTable).action_select_cursor()

    def action_pause(self) -> None:
        self.shown = self.picture if self.paused else self.picture.copy()
        self.redraw()

    def action_page(self) -> None:
        pages = self.query_one("#pages", ContentSwitcher)
        pages.current = "timeline" if pages.current == "now" else "now"
        self.redraw()

    def action_sort(self) -> None:
        self.query_one("#pages", ContentSwitcher).current = "timeline"  # where it is seen
        self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
        self.redraw()

    def action_zoom(self, by: int) -> None:
        self.query_one("#pages", ContentSwitcher).current = "timeline"
        self.span = SPANS[min(max(SPANS.index(self.span) + by, 0), len(SPANS) - 1)]
        self.redraw()

    def action_filter(self) -> None:
        asked = self.query_one("#filter", Input)
        asked.add_class("shown")
        asked.focus()

    def action_unfilter(self) -> None:
        asked = self.query_one("#filter", Input)
        asked.value = ""
        asked.remove_class("shown")
        self.query_one("#calls", DataTable).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self.wanted = event.value.strip()
        self.redraw()

    def on_input_submitted(self) -> None:
        if not self.wanted:
            self.query_one("#filter", Input).remove_class("shown")
        self.query_one("#calls", DataTable).focus()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        if event.row_key.value is not None:
            self.push_screen(Why(self.client, event.row_key.value))
