"""A mechanism for programs without this library: noise and parents in, the node's value out.

    value = restore(f(u, standardise(parents)))

in the user's units at both ends; every input has the batch first and any number of rows. What is
written is `torch.export`'s graph (`.pt2`), which torch runs without this package, or ONNX.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subjunctive.diffusion import Sampler
from subjunctive.mechanism import Mechanism, draw, evaluating, parts, seeded
from subjunctive.scm import SCM
from subjunctive.variable import Variable, known


class Standalone(nn.Module):
    """One node's mechanism as a function of tensors: parts of the noise, then the parents.

    Args:
        mechanism: of the node.
        variable: the node's, with the user's units.
        parents: its parents' variables, with the user's units, in the mechanism's order.
    """

    def __init__(
        self, mechanism: Mechanism, variable: Variable, parents: tuple[Variable, ...]
    ) -> None:
        super().__init__()
        self.mechanism, self.variable, self.parents = mechanism, variable, parents
        with torch.no_grad():
            self.noise = [name for name, _ in parts(draw(mechanism.prior(), 1))]

    @property
    def inputs(self) -> list[str]:
        """Return the names of the inputs, in order: `u.<part>`, then the parents'.

        The noise is `noise.<part>` where a parent has the name `u`.
        """
        parents = [v.name for v in self.parents]
        head = "noise" if any(name.split(".")[0] == "u" for name in parents) else "u"
        return [f"{head}.{name}" if name else head for name in self.noise] + parents

    def forward(self, *values: Tensor) -> Tensor:
        """Return the node's value `(B, *shape)` in its own unit."""
        cut = len(self.noise)
        u: Any = {}
        for name, value in zip(self.noise, values[:cut], strict=True):
            if not name:
                u = value
                break
            *above, last = name.split(".")
            place = u
            for key in above:
                place = place.setdefault(key, {})
            place[last] = value
        pairs = zip(self.mechanism.parents, self.parents, values[cut:], strict=True)
        given = {inner.name: outer.standardise(v) for inner, outer, v in pairs}
        return self.variable.restore(self.mechanism(u, given))


def standalone(model: SCM, node: str) -> tuple[Standalone, tuple[Tensor, ...]]:
    """Return a node's mechanism as a function of tensors, and inputs to try it on.

    Raises:
        KeyError: for an unknown node. ValueError: if the model is no SCM.
    """
    if not isinstance(model, SCM):
        raise ValueError(f"a {type(model).__name__} is no set of mechanisms; export needs an SCM")
    known(node, model.variables, "export")
    mechanism = model.mechanisms[node]
    outer = tuple(model.variables[p] for p in model.graph.parents(node))
    by_name = {v.name: v for v in outer}
    order = tuple(by_name.get(v.name, v) for v in mechanism.parents)
    function = Standalone(mechanism, model.variables[node], order)
    with seeded(0), evaluating(model), torch.no_grad():
        rows = model.noise(3)
        world = model.predict(rows)
        values = [t for _, t in parts(rows[node])] + [world[v.name] for v in order]
    return function.eval(), tuple(values)


def write_mechanism(model: SCM, node: str, path: str | os.PathLike[str]) -> Path:
    """Write a node's mechanism as `.pt2` or `.onnx`, after a check that its trace computes it.

    Args:
        model: an SCM.
        node: whose mechanism.
        path: the file; it is written beside its place and moved there whole.

    Returns:
        the path.

    Raises:
        ValueError: for another suffix, or a mechanism whose code cannot be traced.
        ModuleNotFoundError: if ONNX's libraries are missing.
    """
    out = Path(path)
    if out.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"{out} ends in neither .pt2 nor .onnx")
    function, values = standalone(model, node)
    rows = torch.export.Dim("rows", min=1)
    shapes = {"values": tuple({0: rows} for _ in values)}
    torch.compiler.assume_constant_result(Sampler.numbers)  # torch traces no tensor into numbers
    try:
        with torch.no_grad(), _silent("torch._guards"):
            program = torch.export.export(function, values, dynamic_shapes=shapes, strict=True)
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
        raise ValueError(
            f"the {type(function.mechanism).__name__} of {node!r} cannot be exported: "
            f"{str(error).splitlines()[0]}"
        ) from error
    with torch.no_grad():
        again = program.module()(*values)
        expected = function(*values)
    if not torch.allclose(again, expected, rtol=1e-4, atol=1e-5):
        raise ValueError(f"the exported {node!r} differs from the model's; nothing was written")
    beside = out.with_name(f".{out.name}.{os.getpid()}{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".pt2":
            torch.export.save(program, beside, extra_files={"inputs": "\n".join(function.inputs)})
        else:
            _onnx(program, function, beside, shapes)
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)
    return out


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Keep a logger from telling at length what the error says, too."""
    log = logging.getLogger(name)
    log.addFilter(_drop)
    try:
        yield
    finally:
        log.removeFilter(_drop)


def _drop(record: logging.LogRecord) -> bool:
    return False


def _onnx(program: Any, function: Standalone, path: Path, shapes: dict[str, Any]) -> None:
    if not all(map(find_spec, ("onnx", "onnxscript"))):  # what torch writes ONNX with
        raise ModuleNotFoundError(
            "ONNX needs onnx and onnxscript: pip install 'subjunctive[onnx]', or write a .pt2"
        )
    # It warns of the absence of torchvision, and of torch's own use of what it deprecates.
    with _silent("torch.onnx._internal.exporter._registration"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program,
            f=str(path),
            dynamo=True,
            dynamic_shapes=shapes,  # the first axis is called rows
            input_names=function.inputs,
            output_names=[function.variable.name],
            external_data=False,
            verbose=False,
        )
