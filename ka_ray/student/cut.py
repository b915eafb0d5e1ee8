"""Cut any network that torch.fx can trace into the chain of stages between its taps.

A cut is one value that everything behind it is computed from. Shapes: B images, C channels, *space height
and width, K classes.
"""

import operator
from collections.abc import Iterator, Mapping

from torch import fx, nn

from ka_ray.errors import InputError
from ka_ray.features.stack import SCORES
from ka_ray.features.taps import find_module
from ka_ray.student.trace import drop_probability_attr, is_in_place, trace


def cut(network: nn.Module, paths: Mapping[str, str]) -> nn.ModuleDict:
    """Cut a network at its taps: tap -> the stage that leads to it; the last one, "scores", to the scores.

    In turn the stages give what the network gives, bit for bit in eval mode. They share the network's own
    modules, under the network's own names, so a change of one is a change of both. Two things change for
    training: every dropout and stochastic depth module of the network is set to drop nothing, since the
    targets are soft scores; and whatever a ``forward`` decides by ``self.training`` itself (functional
    dropout, say) stays as in eval mode.

    Args:
        network: Gives scores ``[B, K]`` for images.
        paths: tap -> path of the module whose (last) output it is, as in ``named_modules()``, in any order.

    Returns:
        The stages in the order of the network, each with one input and one output.

    Raises:
        InputError: torch.fx cannot trace the network, or it cannot be cut at one of the taps.

    Example:
        >>> stages = cut(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), {"hidden": "0"})
        >>> {tap: list(stage.state_dict()) for tap, stage in stages.items()}
        {'hidden': ['0.weight', '0.bias'], 'scores': ['2.weight', '2.bias']}
    """
    chain = _Chain(network)
    cuts: dict[fx.Node, str] = {}
    for tap, path in paths.items():
        node = chain.find(tap, path)
        other = cuts.setdefault(node, tap)
        if other != tap:
            raise InputError(f"taps.{tap}: {path!r} gives the same value as taps.{other}, {paths[other]!r}")
    for module in network.modules():
        if name := drop_probability_attr(module):
            setattr(module, name, 0.0)
    stages, start = nn.ModuleDict(), chain.image
    for node in sorted(cuts, key=chain.position.__getitem__):
        stages[cuts[node]] = chain.stage(start, node)
        start = node
    stages[SCORES] = chain.stage(start, chain.values[-1])
    return stages


def working_taps(network: nn.Module) -> list[str]:
    """List the module paths at whose output the network can be cut, from image to scores.

    Every value once, by the shortest path to it (``layer1``, not ``layer1.1.relu``), so all of them together
    are taps that :func:`cut` accepts.
    """
    return _Chain(network).working()


class _Chain:
    """The values between image and scores, in order; a cut is one that nothing leads past.

    Values that no image reaches (parameters, constants) and the size of the batch are no such values: every
    stage can get them by itself.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.graph, self.results = trace(network)
        *nodes, output = self.graph.nodes
        scores = output.args[0]
        if not isinstance(scores, fx.Node):
            raise InputError(f"student.network: gives a {type(scores).__name__}, not one tensor of scores")
        self.image = next(node for node in nodes if node.op == "placeholder")
        self.batch_sizes = {node for node in nodes if _is_batch_size(node, self.image)}
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
        for path in sorted(self.results, key=len):
            if self.results[path] is not None:
                self.names.setdefault(self.results[path], path)
        self.spans = [*self._data_spans(), *self._weight_spans()]

    def _check(self, nodes: list[fx.Node], needed: set[fx.Node]) -> None:
        for node in nodes:
            if node.op == "placeholder" and node in needed and node is not self.image:
                raise InputError(f"student.network: takes {node.name!r} besides the image")
            if not node.users and is_in_place(self.network, node):
                raise InputError(
                    f"student.network: {node.name} changes its input in place and its result is not used; "
                    "write x = relu(x), not relu(x)"
                )

    def _data_spans(self) -> Iterator[tuple[int, int, str]]:
        for i, node in enumerate(self.values):
            last = max((self.position.get(user, i) for user in node.users), default=i)
            yield i + 1, last - 1, self.names.get(node, node.name)

    def _weight_spans(self) -> Iterator[tuple[int, int, str]]:
        """A module's weights, tied ones too, may be used in one stage alone: adapters fold into them."""
        used: dict[int, list[int]] = {}
        names: dict[int, str] = {}
        for i, node in enumerate(self.values):
            if node.op == "call_module":
                module = self.network.get_submodule(str(node.target))
                for weight in (*module.parameters(), *module.buffers()):
                    used.setdefault(id(weight), []).append(i)
                    names.setdefault(id(weight), f"the weights of {node.target}")
        for key, where in used.items():
            if where[-1] > where[0]:
                yield where[0], where[-1] - 1, names[key]

    def _beside(self, node: fx.Node) -> list[str]:
        i = self.position[node]
        return [name for first, last, name in self.spans if first <= i <= last]

    def _cuts(self) -> Iterator[tuple[fx.Node, str]]:
        for node in self.values[1:-1]:
            if node in self.names and not self._beside(node) and not _is_unpacked(node):
                yield node, self.names[node]

    def working(self) -> list[str]:
        """List the paths of all cuts, in order."""
        return [path for _, path in self._cuts()]

    def find(self, tap: str, path: str) -> fx.Node:
        """Find the value at a tap; InputError unless the network can be cut there."""
        if tap == SCORES or not tap or "." in tap or hasattr(nn.ModuleDict, tap):
            raise InputError(f"taps.{tap}: a tap cannot have this name; give another, without dots")
        find_module(self.network, tap, path)
        if path not in self.results:
            raise InputError(f"taps.{tap}: the network never calls {path!r}; {self._nearest(0)}")
        node: fx.Node | None = self.results[path]
        if node is None or _is_unpacked(node):
            raise InputError(f"taps.{tap}: {path!r} does not give one tensor; {self._nearest(0)}")
        if node not in self.position:
            raise InputError(f"taps.{tap}: {path!r} leads not from image to scores; {self._nearest(0)}")
        near = self._nearest(self.position[node])
        if node in (self.image, self.values[-1]):
            raise InputError(
                f"taps.{tap}: {path!r} gives {'the image' if node is self.image else 'the scores'}; {near}"
            )
        if others := self._beside(node):
            raise InputError(
                f"taps.{tap}: more than one value crosses behind {path!r} "
                f"(also: {', '.join(others[:3])}); {near}"
            )
        return node

    def _nearest(self, position: int) -> str:
        before = [path for node, path in self._cuts() if self.position[node] < position]
        behind = [path for node, path in self._cuts() if self.position[node] > position]
        return f"the nearest taps that work: {', '.join(before[-3:] + behind[:3]) or 'none'}"

    def stage(self, start: fx.Node, end: fx.Node) -> fx.GraphModule:
        """Build the module that leads from one value to a later one."""
        needed, queue = {start, end}, [end]
        while queue:
            node = queue.pop()
            if node is not start and node not in self.batch_sizes:
                queue += [other for other in node.all_input_nodes if other not in needed]
                needed.update(node.all_input_nodes)
        graph = fx.Graph()
        features = graph.placeholder("features")
        if any(is_in_place(self.network, user) and user.args[0] is start for user in start.users):
            features = graph.call_method("clone", (features,))  # what leads to the tap stays as it was
        copies = {start: features}
        for node in self.graph.nodes:
            if node in self.batch_sizes and node in needed:
                copies[node] = graph.call_method("size", (features, 0))
            elif node in needed and node is not start:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[end])
        stage = fx.GraphModule(self.network, graph)
        for path, module in stage.named_modules():
            module.training = self.network.get_submodule(path).training
        return stage


def _is_batch_size(node: fx.Node, image: fx.Node) -> bool:
    """Whether a node is ``image.size(0)``, ``image.size()[0]`` or ``image.shape[0]``."""
    if node.op == "call_method" and node.target == "size":
        return node.args == (image, 0)
    if node.target is not operator.getitem or node.args[1:] != (0,):
        return False
    shape = node.args[0]
    if not isinstance(shape, fx.Node) or shape.args[:1] != (image,):
        return False
    return (shape.target == "size" and len(shape.args) == 1) or shape.args[1:] == ("shape",)


def _is_unpacked(node: fx.Node) -> bool:
    """Whether a value is a tuple or a dict: one of its items is taken."""
    users = [user for user in node.users if user.target is operator.getitem]
    return any(isinstance(user.args[1], int | str) for user in users)
