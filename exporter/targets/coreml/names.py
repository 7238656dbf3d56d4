"""Names that the package, its host and the files agree on."""

PACKAGE, HOST_FILE = "model.mlpackage", "host.json"
MODEL_IN_PACKAGE, WEIGHTS_IN_PACKAGE = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"
PACKAGE_FILES = ("Manifest.json", MODEL_IN_PACKAGE, WEIGHTS_IN_PACKAGE)

PREFILL, DECODE = "prefill", "decode"
TOKENS, POSITION, LENGTH, LOGITS = "input_ids", "position", "length", "logits"


def label(name: str) -> str:
    """A canonical name as an identifier of MIL."""
    return name.replace(".", "_")
