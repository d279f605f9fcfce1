"""What a sharded model does, found out without a message: the model is run once on tensors of the whole shape that
have no memory.

Every torch function that the run meets is asked for its rule (`table.py`), which says how the result lies on the
ranks, what has to be received before, and which of the arguments are the same on every rank. What has no rule, or
cannot be exact, is refused with the path of its module. All ranks make the same plan from the same numbers; the plan
is then found again by where a function is called, its name, and the shapes on this rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lconv_fast.generators import Generators
from lconv_fast.own_functions import own_functions
from lconv_fast.sharding.calls import Call, Shapes, name_of, statics_of, tensors_of, with_tensors
from lconv_fast.sharding.layout import Domain, Layout, Move, Points, Split, axes_of, local_shape, plan_move


class Plan:
    """For each place of the model and name of a function: what to do at the shapes of this rank."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], dict[Any, Any]] = {}
        self.outputs: list[Layout] = []
        self.costs: list[Cost] = []
        self.overlapped: set[str] = set()  # where halos can travel while a layer computes
        self.held: list[tuple[str, tuple[int, ...], Layout]] = []  # what each layer returns on this rank

    def find(self, path: str, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        known = self.entries.get((path, name))
        if known is None:
            return None
        shapes = tuple([tuple([int(n) for n in t.shape]) for t in tensors_of(args, kwargs)])
        entry = known.get((shapes, statics_of(name, args, kwargs)))
        if entry is None and any(getattr(e, "needs_plan", False) for e in known.values()):
            raise RuntimeError(
                f"{path or 'model'}: {name} on shapes {shapes} is not in the plan of this model, which has "
                f"{', '.join(map(str, known))}; "
                "the model took another way than on the whole shape"
            )
        return entry


class Whole:
    """A call on tensors that are the same on every rank."""

    needs_plan = False

    def __call__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)


class Cost:
    """What one exchange or sum moves, for `explain`: numbers of values that this rank sends."""

    def __init__(self, where: str, kind: str, values: int, backward: int) -> None:
        self.where, self.kind, self.values, self.backward = where, kind, values, backward


class Planner(TorchFunctionMode):
    """The run on the whole shape. `layout` is kept with each tensor; one whose layout is not known came from code
    that cannot be followed."""

    def __init__(
        self,
        domain: Domain,
        rules: dict[str, Callable[..., Any]],
        refusals: dict[str, str],
        overlap: bool | None = None,
    ) -> None:
        super().__init__()
        self.overlap = overlap  # whether L-convs compute while halos travel; None: where it pays
        self.domain, self.rules, self.refusals = domain, rules, refusals
        self.plan = Plan()
        self.paths = [("", "model")]
        self._seen: dict[Any, list[tuple[Any, Any, Any]]] = {}
        self._entries: dict[Any, Any] = {}
        self.sizes: list[tuple[str, tuple[int, ...], Layout]] = []  # of what each module returns, for `explain`

    # -- layouts --

    def layout(self, t: Tensor) -> Layout:
        known: Layout | None = getattr(t, "_layout", None)
        if known is None:
            if t.is_meta:
                self.refuse(
                    "a tensor",
                    "comes from code that cannot be followed, such as a torch.autograd.Function or a custom operator",
                )
            return ()
        return known

    def keep(self, t: Any, layout: Layout) -> Any:
        """t with its layout; every rank has to hold a part."""
        for dim, split in layout:
            if isinstance(split, Split) and min(split.sizes) < 1:
                self.refuse(
                    "result",
                    f"has {t.shape[dim]} points in dimension {dim}, which leaves none for some rank: {split.sizes}",
                )
        t._layout = tuple(sorted(layout, key=lambda pair: pair[0]))
        return t

    def local(self, t: Tensor, layout: Layout) -> tuple[int, ...]:
        return local_shape(t.shape, layout, self.domain.place)

    # -- refusals --

    @property
    def where(self) -> str:
        path, kind = self.paths[-1]
        return f"{path} ({kind})" if path else kind

    def refuse(self, name: str, reason: str) -> NoReturn:
        raise ValueError(f"shard: {self.where}: {name} {reason}")

    def _meet(self, function: type) -> None:
        if getattr(function, "pointwise", False) is not True:
            self.refuse(
                f"{function.__name__}, a torch.autograd.Function,",
                "has a backward pass that cannot be followed; if it acts at each point alone, forward and backward, "
                "say so by an attribute of the class, pointwise = True",
            )

    # -- entries --

    def record(self, call: Call, entry: Any, detail: Any = None, path: str | None = None) -> None:
        """Keeps the entry for the call's place, name and shapes; refuses where two calls that differ look alike on
        some rank."""
        place = (self.paths[-1][0] if path is None else path, call.name)
        layouts = tuple(self.layout(t) for t in call.tensors)
        shapes = tuple(tuple(t.shape) for t in call.tensors)
        statics = statics_of(call.name, call.args, call.kwargs)
        content = (shapes, layouts, detail)
        seen = self._seen.setdefault((place, statics), [])
        for other in seen:
            if other != content:
                self._compare(call, content, other)
        known = self.plan.entries.setdefault(place, {})
        if content not in seen:
            seen.append(content)
            local = tuple(self.local(t, lay) for t, lay in zip(call.tensors, layouts, strict=True))
            known[local, statics] = entry
            self._entries[place, statics, content] = entry
        elif numbers := getattr(entry, "numbers", None):
            self._entries[place, statics, content].numbers |= numbers

    def _compare(self, call: Call, one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
        if len(one[0]) != len(other[0]):
            return
        for place in itertools.product(*map(range, self.domain.sizes)):
            first, second = (self._shapes(content, place) for content in (one, other))
            if first == second:
                self.refuse(
                    call.name,
                    f"is called in two ways that look alike on a rank, which holds shapes {first} both times: on "
                    f"{one[0]} and on {other[0]}; "
                    "take another number of ranks, or another size",
                )

    @staticmethod
    def _shapes(content: tuple[Any, ...], place: Sequence[int]) -> Shapes:
        return tuple(local_shape(shape, layout, place) for shape, layout in zip(content[0], content[1], strict=True))

    def moves(
        self, name: str, t: Tensor, layout: Layout, wants: dict[int, Any], border: str = "zeros", value: float = 0.0
    ) -> tuple[Move, ...]:
        """The exchanges after which each rank holds `wants[dim]`, intervals for every rank; counted."""
        result, shape = [], list(self.local(t, layout))
        splits = dict(layout)
        for dim in sorted(wants):
            split = splits[dim]
            if isinstance(split, Points):
                self.refuse(name, f"needs neighbours along dimension {dim}, where the points have no order any more")
            one = plan_move(self.domain, f"shard: {self.where}: {name}", dim, split, wants[dim], border, value)
            if one is None:
                continue
            result.append(one)
            rest = 1
            for d, n in enumerate(shape):
                rest *= n if d != dim else 1
            if one.group is not None:
                self.plan.costs.append(
                    Cost(self.where, f"{name} halo {dim}", rest * one.sent(), rest * sum(one.receive))
                )
            first, last = wants[dim][self.domain.place[split.axis]]
            shape[dim] = last - first
        return tuple(result)

    def relaid(self, name: str, t: Tensor, layout: Layout, target: dict[int, Split | Points]) -> tuple[Move, ...]:
        """The exchanges that bring t on to the splits of `target`."""
        wants = {}
        for dim, split in layout:
            if dim in target and target[dim] != split:
                other = target[dim]
                if (
                    isinstance(other, Points)
                    or isinstance(split, Points)
                    or other.axis != split.axis
                    or other.extent != split.extent
                ):
                    self.refuse(name, f"meets tensors that are sharded in different ways along dimension {dim}")
                wants[dim] = list(zip(other.offsets, other.offsets[1:], strict=False))
        return self.moves(name, t, layout, wants) if wants else ()

    def groups(self, axes: Iterable[int]) -> tuple[Any, ...]:
        return tuple(self.domain.groups[axis] for axis in sorted(axes))

    def count_sum(self, name: str, values: int, backward: bool) -> None:
        """Each value is reduced over the ranks once, forward or backward."""
        self.plan.costs.append(Cost(self.where, f"{name} sum", 0 if backward else values, values if backward else 0))

    # -- the run --

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = name_of(func), kwargs or {}
        args, kwargs = with_tensors(args, kwargs, [self._blank(t) for t in tensors_of(args, kwargs)])
        call = Call(name, func, args, kwargs)
        layouts = [self.layout(t) for t in call.tensors]
        if not any(layouts):
            result = call.run()
            if isinstance(result, Tensor):
                result = self._blank(result)
            self._everywhere(result)
            if name in self.rules:
                self.record(call, Whole())
            return result
        rule = self.rules.get(name)
        if rule is not None:
            return rule(self, call)
        try:
            result = call.run()
        except (RuntimeError, NotImplementedError) as error:
            self.refuse(name, f"needs the values of a sharded tensor: {error}")
        if not _holds_tensors(result):
            return result  # a shape, a dtype, ...
        self.refuse(name, self.refusals.get(name, "has no rule for sharded tensors"))

    def _blank(self, t: Tensor) -> Tensor:
        """Constants, and what factories make, without their memory as well."""
        if t.is_meta:
            return t
        blank = t.to("meta")
        blank._layout = ()  # type: ignore[attr-defined]
        return blank

    def _everywhere(self, result: Any) -> None:
        for t in tensors_of((result,), {}):
            if getattr(t, "_layout", None) is None:
                t._layout = ()  # type: ignore[attr-defined]

    def trace(self, model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        for t in (*model.parameters(), *model.buffers()):
            t._layout = ()  # type: ignore[attr-defined]
        handles = []
        for path, module in model.named_modules():

            def enter(module: nn.Module, _: Any, path: str = path) -> None:
                self.paths.append((path, type(module).__name__))

            def leave(module: nn.Module, _: Any, output: Any) -> None:
                inner = any(not isinstance(child, Generators) for child in module.children())
                for t in () if inner else tensors_of((output,), {}):
                    self.sizes.append((self.where, self.local(t, self.layout(t)), self.layout(t)))
                self.paths.pop()

            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        try:
            with torch.no_grad(), own_functions(self._meet), self:
                output = model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        self.plan.outputs = [self.layout(t) for t in tensors_of((output,), {})]
        return output


def _holds_tensors(value: Any) -> bool:
    return bool(tensors_of((value,), {}))


__all__ = ["Plan", "Planner", "axes_of"]
