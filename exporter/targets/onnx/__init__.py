"""ONNX Runtime's CPU: the decoder as one graph of standard and com.microsoft operators, built node by node."""
