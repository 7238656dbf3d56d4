"""Names that the graph, its host and the files agree on."""

GRAPH_FILE, HOST_FILE = "model.onnx", "host.json"
DATA_FILE = f"{GRAPH_FILE}.data"

TOKENS, POSITIONS, LOGIT_ROWS = "input_ids", "positions", "logit_rows"
HELD, WRITE_SLOT = "held", "write_slot"
PAST, PRESENT = "past", "present"
STATE, NEXT_STATE = "state", "next_state"
