"""Write a mean over all pixels as GlobalAveragePool."""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.exporters.onnx.rewrites.constants import array, attribute


def global_average_pool(model: ir.Model) -> int:
    """Replace a ReduceMean over the spatial axes, sizes kept, by GlobalAveragePool.

    Runtimes have an integer kernel for the pool and none for the reduction. With one spatial axis
    only a mean of codes counts: otherwise it is a normalization's, which runtimes fuse.

    Before: `ReduceMean(x [N, C, H, W], axes=[2, 3], keepdims=1)`. After: `GlobalAveragePool(x)`.

    Returns:
        How many were replaced.
    """
    graph = model.graph
    count = 0
    for node in list(graph):
        source = node.inputs[0] if node.inputs else None
        if node.op_type != "ReduceMean" or source is None or source.shape is None:
            continue
        axes = array(node.inputs[1]) if len(node.inputs) > 1 else None
        rank = len(source.shape)
        if axes is None or attribute(node, "keepdims", 1) != 1 or rank < 3:
            continue
        if sorted(int(a) % rank for a in axes.reshape(-1)) != list(range(2, rank)):
            continue
        if rank == 3 and not _reads_codes(source):
            continue
        name = (node.name or "").replace(node.op_type, "GlobalAveragePool")
        pool = ir.node("GlobalAveragePool", [source], num_outputs=1, name=name)
        result = node.outputs[0]
        pool.outputs[0].name = f"{result.name}"
        pool.outputs[0].shape, pool.outputs[0].type = result.shape, result.type
        pool.metadata_props.update(node.metadata_props)
        graph.insert_before(node, pool)
        result.replace_all_uses_with(pool.outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)
        count += 1
    return count


def _reads_codes(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"
