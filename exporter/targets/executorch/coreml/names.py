"""Names that the program and the files agree on."""

from exporter.targets.coreml.names import LOGITS, POSITION, TOKENS

PROGRAM_FILE, PROGRAM_SUFFIX = "model.pte", ".pte"
METHOD = "forward"
BACKEND = "CoreMLBackend"
METADATA_FILE = "metadata.json"
"""Beside the package in the delegate's payload; ExecuTorch's runtime for Core ML reads it."""

INPUTS, OUTPUTS = (TOKENS, POSITION), (LOGITS,)
"""In the order of the method's arguments."""
