"""The smallest function: a handler and nothing to load."""


def handler(event):
    return {"greeting": f"Hello, {event.get('name', 'world')}!"}
