"""Names that the program, its host and the files agree on."""

PROGRAM_FILE, HOST_FILE = "model.pte", "host.json"
METHOD = "forward"
