"""Names that the program and the files agree on."""

from exporter.targets.coreml.names import LENGTH, LOGITS, POSITION, TOKENS

PROGRAM_FILE, PROGRAM_SUFFIX = "model.pte", ".pte"
METHOD = "forward"
BACKEND = "CoreMLBackend"
METADATA_FILE = "metadata.json"
"""Beside the package in the delegate's payload; ExecuTorch's runtime for Core ML reads it."""

INPUTS, OUTPUTS = (TOKENS, POSITION, LENGTH), (LOGITS,)
"""In the order of the method's arguments. Only decoders with recurrent layers are told a length."""
