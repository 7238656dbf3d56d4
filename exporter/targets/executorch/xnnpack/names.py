"""Names that the program, its host and the files agree on."""

PROGRAM_FILE, HOST_FILE = "model.pte", "host.json"
METHOD = "forward"

KEYS, VALUES = "keys", "values"
CACHE_PREFIX = "cache"
"""First part of the names of buffers that hold keys and values: `cache.LAYER.PART`."""
