"""From HtpGraph to a context binary: builds Qualcomm operator wrappers directly and runs the HTP compiler on them.

Going through torch.export and the edge passes takes minutes of Python for the same binary; the operators are known here, so they
are written down. Runs in a child process: the compiler prints and can crash. Encodings follow the QNN header conventions
(offset = -zero_point).
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import executorch.backends.qualcomm.python.PyQnnManagerAdaptor as qnn
import numpy as np
import torch
from executorch.backends.qualcomm.partition.utils import generate_qnn_executorch_option
from executorch.backends.qualcomm.serialization.qc_schema import QcomChipset
from executorch.backends.qualcomm.utils.constants import (
    QCOM_AXIS,
    QCOM_BLOCK_SCALE_BITWIDTH,
    QCOM_BLOCK_SCALE_OFFSET,
    QCOM_BLOCK_SCALES,
    QCOM_BLOCK_STORAGE_TYPE,
    QCOM_DATA,
    QCOM_DTYPE,
    QCOM_NUM_BLOCKS_PER_AXIS,
    QCOM_OFFSET,
    QCOM_QUANT_MAX,
    QCOM_QUANT_MIN,
    QCOM_SCALE,
    QCOM_SCALE_OFFSET,
)
from executorch.backends.qualcomm.utils.utils import (
    generate_htp_compiler_spec,
    generate_qnn_executorch_compiler_spec,
)

from exporter.errors import GateFailed, ToolchainMissing
from exporter.quantize.int4 import QuantizedMatrix
from exporter.targets.executorch.qnn.blocks import kernel_block, kernel_columns
from exporter.targets.executorch.qnn.graph import (
    Constant,
    Encoding,
    HtpGraph,
    Kernel,
    Operand,
    Operation,
    Role,
    Storage,
    Value,
)
from exporter.targets.executorch.qnn.program import CompiledContext

_PACKAGE = "qti.aisw"
_HEADER, _HEADER_MAGIC = "<IQQ", 0x5678ABCD
_DATA = qnn.Qnn_DataType_t
_TENSOR = qnn.Qnn_TensorType_t
_ENCODING = qnn.Qnn_QuantizationEncoding_t
_DATA_TYPES = {
    Storage.UINT16: _DATA.QNN_DATATYPE_UFIXED_POINT_16,
    Storage.UINT8: _DATA.QNN_DATATYPE_UFIXED_POINT_8,
    Storage.INT32: _DATA.QNN_DATATYPE_INT_32,
}
_TORCH_TYPES = {Storage.UINT16: torch.uint16, Storage.UINT8: torch.uint8}
_NUMPY_TYPES = {Storage.UINT16: np.uint16, Storage.UINT8: np.uint8}


def input_name(position: int, value: Value) -> str:
    """The runtime orders graph inputs by the number in their names."""
    return f"input_{position}_{_plain(value.name)}"


def output_name(value: Value) -> str:
    return f"output_{_plain(value.name)}"


def compile_graphs(
    graphs: list[HtpGraph], encodings: dict[str, Encoding], soc: str, share_weights: bool
) -> CompiledContext:
    """Compiles all methods into one context. Raises GateFailed naming every operator that the HTP refuses."""
    options = _options(soc, share_weights)
    manager = qnn.QnnManager(options)
    if manager.InitBackend().value != 0:
        raise ToolchainMissing("the Qualcomm HTP backend does not start", "run: slm-export doctor")
    try:
        if manager.InitContext([graph.name for graph in graphs]).value != 0:
            raise ToolchainMissing(f"the Qualcomm HTP backend has no context for {soc}", "run: slm-export doctor")
        built = [_build_operations(graph, encodings) for graph in graphs]
        for graph, wrappers in zip(graphs, built, strict=True):
            _require_supported(manager, graph, wrappers)
        binary = bytes(
            manager.Compile([graph.name for graph in graphs], [[op.GetOpWrapper() for op in ops] for ops in built])
        )
        if not binary:
            raise GateFailed(f"the Qualcomm compiler produced no binary for {soc}")
        manager.DestroyContext()
    finally:
        manager.Destroy()
    return CompiledContext(with_content_signature(binary), options)


def with_content_signature(binary: bytes) -> bytes:
    """ExecuTorch marks each context with the time of its making, to tell contexts apart at run time. A hash of the content does
    that too, and lets equal exports be equal byte by byte. Header: magic, signature, size of the context, little-endian."""
    magic, _, size = struct.unpack_from(_HEADER, binary)
    if magic != _HEADER_MAGIC or size > len(binary):
        raise ToolchainMissing("this ExecuTorch writes another context header", "install executorch==1.5.1")
    start = struct.calcsize(_HEADER)
    signature = int.from_bytes(hashlib.sha256(binary[start:]).digest()[:8], "little")
    return struct.pack(_HEADER, magic, signature, size) + binary[start:]


def _options(soc: str, share_weights: bool) -> bytes:
    backend = generate_htp_compiler_spec(use_fp16=False, use_weight_sharing=share_weights)
    specs = generate_qnn_executorch_compiler_spec(soc_model=QcomChipset[soc], backend_options=backend)
    return bytes(generate_qnn_executorch_option(specs))


def _require_supported(manager: qnn.QnnManager, graph: HtpGraph, wrappers: list[qnn.PyQnnOpWrapper]) -> None:
    refused = [
        f"{operation.kind} {operation.name}"
        for operation, wrapper in zip(graph.operations, wrappers, strict=True)
        if not manager.IsNodeSupportedByBackend([wrapper.GetOpWrapper()])
    ]
    if refused:
        raise GateFailed(
            f"{graph.name}: the HTP refuses {len(refused)} operators, first {', '.join(refused[:5])}",
            "delegation must be complete: try another kv_cache.bits or report the model's shape",
        )


def _build_operations(graph: HtpGraph, encodings: dict[str, Encoding]) -> list[qnn.PyQnnOpWrapper]:
    builder = _WrapperBuilder(encodings)
    for position, value in enumerate(graph.inputs):
        builder.define_value(value, input_name(position, value), _TENSOR.QNN_TENSOR_TYPE_APP_WRITE)
    return [builder.build(operation) for operation in graph.operations]


class _WrapperBuilder:
    """Makes one wrapper per tensor and per operator of a graph."""

    def __init__(self, encodings: dict[str, Encoding]) -> None:
        self.encodings = encodings
        self.tensors: dict[str, qnn.TensorWrapper] = {}

    def build(self, operation: Operation) -> qnn.PyQnnOpWrapper:
        wrapper = qnn.PyQnnOpWrapper(_plain(f"op_{operation.name}"), _PACKAGE, operation.kind)
        inputs = [self._operand(operand) for operand in operation.inputs]
        if operation.kind == "RmsNorm":
            inputs.append(self._zero_shift(operation))
        wrapper.AddInputTensors(inputs)
        output = operation.output
        crosses = output.role is Role.OUTPUT
        name = output_name(output) if crosses else _plain(output.name)
        kind = _TENSOR.QNN_TENSOR_TYPE_APP_READ if crosses else _TENSOR.QNN_TENSOR_TYPE_NATIVE
        wrapper.AddOutputTensors([self.define_value(output, name, kind)])
        _add_parameters(wrapper, operation)
        return wrapper

    def define_value(self, value: Value, name: str, kind: Any) -> qnn.TensorWrapper:
        if value.storage is Storage.INT32:
            wrapper = _tensor(
                name, kind, _DATA_TYPES[value.storage], _ENCODING.QNN_QUANTIZATION_ENCODING_UNDEFINED, {}, value.shape
            )
        else:
            encoding = self.encodings[value.name]
            wrapper = _tensor(
                name,
                kind,
                _DATA_TYPES[value.storage],
                _ENCODING.QNN_QUANTIZATION_ENCODING_SCALE_OFFSET,
                _affine(encoding),
                value.shape,
            )
        self.tensors[value.name] = wrapper
        return wrapper

    def _operand(self, operand: Operand) -> qnn.TensorWrapper:
        if isinstance(operand, Value):
            return self.tensors[operand.name]
        if operand.name not in self.tensors:
            self.tensors[operand.name] = _static(operand) if isinstance(operand, Constant) else _kernel(operand)
        return self.tensors[operand.name]

    def _zero_shift(self, operation: Operation) -> qnn.TensorWrapper:
        """The HTP's RmsNorm takes a shift beside the gain."""
        gain = operation.inputs[1]
        assert isinstance(gain, Constant)
        shift = Constant(f"{gain.name}_shift", torch.zeros_like(gain.data), fixed=gain.encoding)
        return self._operand(shift)


def _tensor(
    name: str,
    kind: Any,
    data_type: Any,
    encoding: Any,
    settings: dict,
    shape: tuple[int, ...],
    data: np.ndarray | None = None,
) -> qnn.TensorWrapper:
    content = np.array([]) if data is None else np.ascontiguousarray(data)
    return qnn.TensorWrapper(
        name, kind, data_type, encoding, settings, len(shape), list(shape), [], content, data is not None
    )


def _affine(encoding: Encoding) -> dict:
    return {
        QCOM_DTYPE: _TORCH_TYPES[encoding.storage],
        QCOM_SCALE: encoding.scale,
        QCOM_OFFSET: -encoding.zero_point,
        QCOM_QUANT_MIN: 0,
        QCOM_QUANT_MAX: encoding.storage.levels,
    }


def _static(constant: Constant) -> qnn.TensorWrapper:
    encoding = constant.encoding
    codes = encoding.quantize(constant.data).numpy().astype(_NUMPY_TYPES[encoding.storage])
    return _tensor(
        _plain(constant.name),
        _TENSOR.QNN_TENSOR_TYPE_STATIC,
        _DATA_TYPES[encoding.storage],
        _ENCODING.QNN_QUANTIZATION_ENCODING_SCALE_OFFSET,
        _affine(encoding),
        tuple(constant.data.shape),
        codes,
    )


def _kernel(kernel: Kernel) -> qnn.TensorWrapper:
    """A 1x1 convolution kernel in HWIO order; INT4 in blocks along the input, INT8 with one scale per output channel."""
    matrix = kernel.matrix
    columns = kernel_columns(matrix.in_features, matrix.format.group_size)
    codes = torch.nn.functional.pad(matrix.codes(), (0, columns - matrix.in_features))
    encoding, settings = _blocks(matrix, columns) if matrix.format.bits == 4 else _channels(matrix)
    return _tensor(
        _plain(kernel.name),
        _TENSOR.QNN_TENSOR_TYPE_STATIC,
        _DATA.QNN_DATATYPE_SFIXED_POINT_8,
        encoding,
        {QCOM_DTYPE: torch.int8, **settings},
        (1, 1, columns, matrix.out_features),
        codes.T.contiguous()[None, None].numpy(),
    )


def _blocks(matrix: QuantizedMatrix, columns: int) -> tuple[Any, dict[str, Any]]:
    assert matrix.channel_scales is not None and matrix.multipliers is not None
    block = kernel_block(columns, matrix.format.group_size)
    count = columns // block
    repeated = matrix.multipliers.repeat_interleave(matrix.format.group_size // block, dim=1)[:, :count]
    multipliers = torch.nn.functional.pad(repeated, (0, count - repeated.shape[1]), value=1)
    return _ENCODING.QNN_QUANTIZATION_ENCODING_BLOCKWISE_EXPANSION, {
        QCOM_QUANT_MIN: -8,
        QCOM_QUANT_MAX: 7,
        QCOM_AXIS: 3,
        QCOM_NUM_BLOCKS_PER_AXIS: multipliers.shape[1],
        QCOM_BLOCK_SCALE_OFFSET: _scale_offsets(matrix.channel_scales),
        QCOM_BLOCK_SCALES: np.ascontiguousarray(multipliers.numpy()).flatten(),
        QCOM_BLOCK_SCALE_BITWIDTH: 4,
        QCOM_BLOCK_STORAGE_TYPE: (
            qnn.Qnn_BlockwiseExpansionBlockScaleStorageType_t.QNN_BLOCKWISE_EXPANSION_BITWIDTH_SCALE_STORAGE_8
        ),
    }


def _channels(matrix: QuantizedMatrix) -> tuple[Any, dict[str, Any]]:
    return _ENCODING.QNN_QUANTIZATION_ENCODING_AXIS_SCALE_OFFSET, {
        QCOM_QUANT_MIN: -127,
        QCOM_QUANT_MAX: 127,
        QCOM_AXIS: 3,
        QCOM_SCALE_OFFSET: _scale_offsets(matrix.scales[:, 0]),
    }


def _scale_offsets(scales: torch.Tensor) -> np.ndarray:
    pairs = np.zeros(scales.shape[0], dtype=[("scale", np.float32), ("offset", np.int32)])
    pairs["scale"] = scales.numpy()
    return pairs


def _add_parameters(wrapper: qnn.PyQnnOpWrapper, operation: Operation) -> None:
    parameters, rank = operation.parameters, len(operation.output.shape)
    if operation.kind == "Conv2d":
        _tensor_parameter(wrapper, "stride", [1, 1])
        _tensor_parameter(wrapper, "pad_amount", [[0, 0], [0, 0]])
        _tensor_parameter(wrapper, "dilation", [1, 1])
        _scalar_parameter(wrapper, "group", np.uint32(1))
    elif operation.kind == "ReduceMean":
        _tensor_parameter(wrapper, "axes", [rank - 1])
        _scalar_parameter(wrapper, "keep_dims", np.bool_(True))
    elif operation.kind == "RmsNorm":
        _scalar_parameter(wrapper, "epsilon", np.float32(parameters["epsilon"]))
        _tensor_parameter(wrapper, "axes", [rank - 1])
    elif operation.kind == "Softmax":
        _scalar_parameter(wrapper, "axis", np.uint32(parameters["axis"]))
        _scalar_parameter(wrapper, "beta", np.float32(parameters["beta"]))
    elif operation.kind == "Concat":
        _scalar_parameter(wrapper, "axis", np.uint32(parameters["axis"]))
    elif operation.kind == "Gather":
        _scalar_parameter(wrapper, "axis", np.int32(parameters["axis"]))
    elif operation.kind == "Transpose":
        _tensor_parameter(wrapper, "perm", list(parameters["order"]))
    elif operation.kind == "StridedSlice":
        ranges = [[0, size, 1] for size in operation.output.shape]
        ranges[parameters["axis"]] = [parameters["start"], parameters["stop"], 1]
        _tensor_parameter(wrapper, "ranges", ranges, np.int32)
    elif operation.kind == "Pad":
        _scalar_parameter(wrapper, "scheme", np.uint32(0))
        _scalar_parameter(wrapper, "pad_constant_value", np.float32(0))
        _tensor_parameter(wrapper, "pad_amount", [[0, 0]] * (rank - 1) + [[0, parameters["after"]]])
    elif operation.kind == "ReluMinMax":
        _scalar_parameter(wrapper, "min_value", np.float32(parameters["min_value"]))
        _scalar_parameter(wrapper, "max_value", np.float32(parameters["max_value"]))


_SCALAR_TYPES: dict[Any, Any] = {
    np.dtype(np.uint32): _DATA.QNN_DATATYPE_UINT_32,
    np.dtype(np.int32): _DATA.QNN_DATATYPE_INT_32,
    np.dtype(np.float32): _DATA.QNN_DATATYPE_FLOAT_32,
    np.dtype(np.bool_): _DATA.QNN_DATATYPE_BOOL_8,
}


def _scalar_parameter(wrapper: qnn.PyQnnOpWrapper, name: str, value: np.generic) -> None:
    wrapper.AddScalarParam(name, _SCALAR_TYPES[value.dtype], {QCOM_DATA: value})


def _tensor_parameter(wrapper: qnn.PyQnnOpWrapper, name: str, values: list, dtype: type = np.uint32) -> None:
    data: np.ndarray = np.array(values, dtype=dtype)
    wrapper.AddTensorParam(name, _SCALAR_TYPES[data.dtype], data.ndim, list(data.shape), data, True)


def _plain(name: str) -> str:
    return name.replace(".", "_")
