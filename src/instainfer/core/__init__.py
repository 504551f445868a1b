"""The pure core: events in, actions out. See docs/design.md."""
