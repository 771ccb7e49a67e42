"""What a node of an exported graph is: its arguments, its operation, its shape, its module."""

from typing import Any

from torch import fx


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """A node's arguments, of which the operation knows the types."""
    return node.args


def operation(node: fx.Node) -> str:
    """`aten.conv2d.default` -> `conv2d`."""
    if isinstance(node.target, str):
        return node.target
    return str(getattr(node.target, "_opname", getattr(node.target, "__name__", node.target)))


def shape(value: Any) -> tuple[int, ...]:
    """The shape of a node's tensor."""
    found = value.meta["val"]
    return tuple((found[0] if isinstance(found, (tuple, list)) else found).shape)


def layer_name(node: fx.Node) -> str:
    """The module that a node belongs to, as its library names it."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return (stack[-1][0].removeprefix("L['self'].").removeprefix("network.") if stack else "") or node.name
