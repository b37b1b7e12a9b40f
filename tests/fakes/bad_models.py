"""TFLite files that a runtime does not survive."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.fakes.tiny_model import tiny_model


def crashing_model() -> bytes:
    """Return `tiny_model()` with one byte of another value, which ends LiteRT 2.3 by SIGSEGV."""
    model = bytearray(tiny_model())
    model[18] = 0
    return bytes(model)


def endless_model(labels: int = 3) -> bytes:
    """Return a valid classifier of 32 pixels whose first operator repeats while `not False`."""
    import flatbuffers  # noqa: PLC0415 - the device's environments have none
    from ai_edge_litert import schema_py_generated as schema  # noqa: PLC0415 - as above

    kinds, shape = schema.TensorType, [1, 32, 32, 3]
    model = schema.ModelT()
    model.version = 3
    model.buffers = [schema.BufferT() for _ in range(3)]
    model.buffers[1].data = np.frombuffer(np.array([1, 2], np.int32).tobytes(), np.uint8)
    model.buffers[2].data = np.zeros(1, np.uint8)
    builtin = schema.BuiltinOperator
    model.operatorCodes = [_code(schema, one) for one in (builtin.WHILE, builtin.MEAN, builtin.LOGICAL_NOT)]
    loop, mean = schema.WhileOptionsT(), schema.ReducerOptionsT()
    loop.condSubgraphIndex, loop.bodySubgraphIndex = 1, 2
    steps = [
        _operator(schema, 0, [0], [1], (schema.BuiltinOptions.WhileOptions, loop)),
        _operator(schema, 1, [1, 2], [3], (schema.BuiltinOptions.ReducerOptions, mean)),
    ]
    tensors = [_tensor(schema, shape), _tensor(schema, shape), _tensor(schema, [2], kinds.INT32, 1)]
    model.subgraphs = [
        _graph(schema, [*tensors, _tensor(schema, [1, labels])], [0], [3], steps),
        _graph(
            schema,
            [_tensor(schema, shape), _tensor(schema, [1], kinds.BOOL, 2), _tensor(schema, [1], kinds.BOOL)],
            [0],
            [2],
            [_operator(schema, 2, [1], [2])],
        ),
        _graph(schema, [_tensor(schema, shape)], [0], [0], []),
    ]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def expanding_model(count: int) -> bytes:
    """Return `tiny_model()` with so many entries of metadata that share one name of a megabyte."""
    import flatbuffers  # noqa: PLC0415 - as above
    from ai_edge_litert import schema_py_generated as schema  # noqa: PLC0415 - as above

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(tiny_model(), 0))
    builder = flatbuffers.Builder(1 << 21)
    name = builder.CreateString("x" * (1 << 20))
    entries = []
    for _ in range(count):
        schema.MetadataStart(builder)
        schema.MetadataAddName(builder, name)
        entries.append(schema.MetadataEnd(builder))
    lists = [
        (schema.ModelAddMetadata, entries),
        *(
            (add, [one.Pack(builder) for one in parts])
            for add, parts in (
                (schema.ModelAddOperatorCodes, model.operatorCodes),
                (schema.ModelAddSubgraphs, model.subgraphs),
                (schema.ModelAddBuffers, model.buffers),
            )
        ),
    ]
    vectors = []
    for add, offsets in lists:
        builder.StartVector(4, len(offsets), 4)
        for one in reversed(offsets):
            builder.PrependUOffsetTRelative(one)
        vectors.append((add, builder.EndVector()))
    schema.ModelStart(builder)
    schema.ModelAddVersion(builder, 3)
    for add, vector in vectors:
        add(builder, vector)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    return bytes(builder.Output())


def _code(schema: Any, builtin: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), 1
    return code


def _tensor(schema: Any, shape: list[int], kind: int = 0, buffer: int = 0) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = "tensor", shape, kind, buffer
    return tensor


def _operator(schema: Any, code: int, given: list[int], made: list[int], options: Any = (0, None)) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = code, given, made
    operator.builtinOptionsType, operator.builtinOptions = options
    return operator


def _graph(schema: Any, tensors: list[Any], given: list[int], made: list[int], operators: list[Any]) -> Any:
    graph = schema.SubGraphT()
    graph.name, graph.tensors, graph.inputs, graph.outputs = "graph", tensors, given, made
    graph.operators = operators
    return graph
