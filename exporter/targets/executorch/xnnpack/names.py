"""Names that the program, its host and the files agree on."""

PROGRAM_FILE, HOST_FILE = "model.pte", "host.json"
METHOD = "forward"

KEYS, VALUES = "keys", "values"
CACHE_PREFIX = "cache"
"""First part of the names of buffers that hold keys and values: `cache.layers.LAYER.PART`."""

STATES_PREFIX, HELD = "states", "_held"
"""The same for states of recurrences, and what the names of their positions end in."""

STATE_COPIES = 2
"""Each state lies in the program so often, along its first axis."""
