"""Find where a network can be cut, and build the stages between the cuts."""

import operator
from collections.abc import Iterator

from torch import Tensor, fx, nn

from ka_ray.errors import InputError
from ka_ray.features.stack import SCORES
from ka_ray.features.taps import find_module
from ka_ray.student.trace import is_in_place, trace_network
from ka_ray.student.traced_norms import restore_batch_norms


class ValueChain:
    """The values that are computed from the image and lead to the scores, in the order of computation.

    Parameters, constants and the batch size do not count as values: every stage can get them by itself.

    Args:
        network: Maps images to scores.

    Attributes:
        image: The node of the image.
        values: The values, from the image to the scores.
        position: value -> its index in ``values``.
        results: module path -> the value that the module returned; None if it returned a tuple, for example.
        batch_sizes: Nodes whose value is the batch size, such as ``image.size(0)``.
        names: value -> the shortest path of a module that returned it.
        crossings: (first, last, name) for every value or weight that both sides would use if the network were
            cut at a value with an index from first to last. Such a cut is impossible.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.graph, self.results = trace_network(network)
        *nodes, output = self.graph.nodes
        scores = output.args[0]
        if not isinstance(scores, fx.Node):
            raise InputError(
                f"student.network: its forward returns a {type(scores).__name__}; it must return one tensor "
                "of scores"
            )
        self.image = next(node for node in nodes if node.op == "placeholder")
        self.batch_sizes = {node for node in nodes if _is_batch_size(node, self.image)}
        # Values lie on a path from the image (forward search) to the scores (backward search).
        reached, needed = {self.image}, {scores}
        for node in nodes:
            if node not in self.batch_sizes and reached.intersection(node.all_input_nodes):
                reached.add(node)
        for node in reversed(nodes):
            if node in needed and node not in self.batch_sizes:
                needed.update(node.all_input_nodes)
        if scores not in reached:
            raise InputError("student.network: its scores do not depend on the image")
        self._check(nodes, needed)
        self.values = [node for node in nodes if node in reached and node in needed]
        self.position = {node: i for i, node in enumerate(self.values)}
        self.names: dict[fx.Node, str] = {self.image: "the image"}
        for path in sorted(self.results, key=len):  # the shortest path comes first
            if self.results[path] is not None:
                self.names.setdefault(self.results[path], path)
        self.crossings = [*self._value_crossings(), *self._weight_crossings()]

    def _check(self, nodes: list[fx.Node], needed: set[fx.Node]) -> None:
        """Refuse networks whose stages could not compute the same as the network."""
        for node in nodes:
            if node.op == "placeholder" and node in needed and node is not self.image:
                raise InputError(
                    f"student.network: its forward needs {node.name!r} besides the image; a student gets "
                    "only the image"
                )
            # Such a call has no user in the graph, so a stage that is built from its users would lose it.
            if not node.users and is_in_place(self.network, node):
                raise InputError(
                    f"student.network: {node.name} changes its input in place and its result is not used; "
                    "write x = relu(x), not relu(x)"
                )

    def _value_crossings(self) -> Iterator[tuple[int, int, str]]:
        """Yield each value with the range of cuts that lie between it and its last user."""
        for i, node in enumerate(self.values):
            last = max((self.position.get(user, i) for user in node.users), default=i)
            yield i + 1, last - 1, self.names.get(node, node.name)

    def _weight_crossings(self) -> Iterator[tuple[int, int, str]]:
        """Yield weights, also tied ones, with the range of cuts between their first and last use.

        Weights may be used in only one stage, because an adapter that is folded into them changes them.
        """
        used: dict[int, list[int]] = {}
        names: dict[int, str] = {}
        for i, node in enumerate(self.values):
            if node.op == "call_module":
                module = self.network.get_submodule(str(node.target))
                for weight in (*module.parameters(), *module.buffers()):
                    used.setdefault(id(weight), []).append(i)
                    names.setdefault(id(weight), f"the weights of {node.target}")
        for key, positions in used.items():
            if positions[-1] > positions[0]:
                yield positions[0], positions[-1] - 1, names[key]

    def _crossing(self, node: fx.Node) -> list[str]:
        """List what else both sides of a cut at this value would use."""
        i = self.position[node]
        return [name for first, last, name in self.crossings if first <= i <= last]

    def _cuts(self) -> Iterator[tuple[fx.Node, str]]:
        """Yield every value at which the network can be cut, with the path of the module that returned it."""
        for node in self.values[1:-1]:  # without the image and the scores
            if node in self.names and not self._crossing(node) and not _is_unpacked(node):
                yield node, self.names[node]

    def valid_paths(self) -> list[str]:
        """List the paths at which the network can be cut, in order."""
        return [path for _, path in self._cuts()]

    def find(self, tap: str, path: str) -> fx.Node:
        """Find the value at a tap.

        Args:
            tap: Name of the tap.
            path: Path of the module whose output is the tap.

        Raises:
            InputError: The network cannot be cut there, or the name cannot be used for a tap.
        """
        if tap == SCORES or not is_child_name(tap):
            raise InputError(f"taps.{tap}: a tap cannot have this name; choose another one, without dots")
        find_module(self.network, tap, path)
        if path not in self.results:
            raise InputError(f"taps.{tap}: the network's forward never calls {path!r}; {self._nearest(0)}")
        node: fx.Node | None = self.results[path]
        if node is None or _is_unpacked(node):
            raise InputError(f"taps.{tap}: {path!r} does not return one tensor; {self._nearest(0)}")
        if node not in self.position:
            raise InputError(
                f"taps.{tap}: {path!r} is not on the path from the image to the scores; {self._nearest(0)}"
            )
        nearest = self._nearest(self.position[node])
        if node in (self.image, self.values[-1]):
            end = "the image itself" if node is self.image else "the scores"
            raise InputError(f"taps.{tap}: {path!r} returns {end}, so no layers lie on one side; {nearest}")
        if others := self._crossing(node):
            raise InputError(
                f"taps.{tap}: the network cannot be cut at {path!r}, because both sides would use more than "
                f"its output (also: {', '.join(others[:3])}); {nearest}"
            )
        return node

    def _nearest(self, position: int) -> str:
        """Name up to three valid taps before and after a position, for error messages."""
        before = [path for node, path in self._cuts() if self.position[node] < position]
        after = [path for node, path in self._cuts() if self.position[node] > position]
        return f"the nearest taps that work: {', '.join(before[-3:] + after[:3]) or 'none'}"

    def build_stage(self, start: fx.Node, end: fx.Node) -> fx.GraphModule:
        """Build the module that computes one value from an earlier one.

        Args:
            start: The value that the stage gets.
            end: The value that it returns.
        """
        # Walk back from the end; the search stops at the start, whose own inputs belong to earlier stages.
        needed, queue = {start, end}, [end]
        while queue:
            node = queue.pop()
            if node is not start and node not in self.batch_sizes:
                queue += [other for other in node.all_input_nodes if other not in needed]
                needed.update(node.all_input_nodes)
        graph = fx.Graph()
        features = graph.placeholder("features")
        if any(is_in_place(self.network, user) and user.args[0] is start for user in start.users):
            # An in-place operation would otherwise overwrite the output of the stage before.
            features = graph.call_method("clone", (features,))
        copies = {start: features}
        for node in self.graph.nodes:
            if node in self.batch_sizes and node in needed:
                # The stage does not get the image, but the features have the same batch size.
                copies[node] = graph.call_method("size", (features, 0))
            elif node in needed and node is not start:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[end])
        stage = fx.GraphModule(self.network, graph)
        restore_batch_norms(stage, self.network)
        # The containers that GraphModule creates around the modules start in training mode.
        for path, module in stage.named_modules():
            module.training = self.network.get_submodule(path).training
        return stage


def _is_batch_size(node: fx.Node, image: fx.Node) -> bool:
    """Return whether a node is ``image.size(0)``, ``image.size()[0]`` or ``image.shape[0]``."""
    if node.op == "call_method" and node.target == "size":
        return node.args == (image, 0)
    if node.target is not operator.getitem or node.args[1:] != (0,):
        return False
    shape = node.args[0]
    if not isinstance(shape, fx.Node) or shape.args[:1] != (image,):
        return False
    return (shape.target == "size" and len(shape.args) == 1) or shape.args[1:] == ("shape",)


def is_child_name(name: str) -> bool:
    """Return whether a ``ModuleDict``, whose children are the stages, takes a name.

    It refuses dots, and what it has itself: methods, and attributes such as ``training``.
    """
    return bool(name) and "." not in name and not hasattr(nn.ModuleDict(), name)


def _is_unpacked(node: fx.Node) -> bool:
    """Return whether a value is no tensor: an item is read by an int or str key, or a field by its name."""
    items = [user.args[1] for user in node.users if user.target is operator.getitem]
    fields = [str(user.args[1]) for user in node.users if user.target is getattr]
    return any(isinstance(key, int | str) for key in items) or any(not hasattr(Tensor, f) for f in fields)
