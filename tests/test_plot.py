import io
import subprocess
import sys

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from subjunctive import plot
from subjunctive.graph import Graph
from subjunctive.intervention import Draw, Scale, Set, Shift
from subjunctive.plot.pictures import difference_map
from subjunctive.variable import Variable

ARM = Variable("arm", kind="categorical", categories=("placebo", "drug"))
VARIABLES = {"t": Variable("t", unit="px"), "arm": ARM, "x": Variable("x", (1, 8, 8))}


def pictures(rows=2, channels=1, value=0.5):
    return np.full((rows, channels, 8, 8), value, np.float32)


def drawn(figure):
    """The picture as `(H, W, 4)` bytes: what a reader sees."""
    file = io.BytesIO()
    figure.savefig(file, dpi=60)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize(
    ("do", "text"),
    [
        ({"t": 3.0}, "do(t = 3 px)"),
        ({"t": torch.tensor([2.5])}, "do(t = 2.5 px)"),
        ({"t": Set(1)}, "do(t = 1 px)"),
        ({"t": Shift(1.0)}, "do(t + 1 px)"),
        ({"t": Shift(-1.0)}, "do(t - 1 px)"),
        ({"t": Scale(2.0), "arm": "drug"}, "do(t × 2, arm = drug)"),
        ({"arm": 1}, "do(arm = drug)"),
        ({"t": Draw(torch.distributions.Normal(0.0, 1.0))}, "do(t = Draw px)"),
        ({"t": torch.arange(3.0)}, "do(t = ... px)"),
    ],
)
def test_titles_have_units_and_labels(do, text):
    assert plot.title(do, VARIABLES) == text


def test_titles_know_their_nodes():
    with pytest.raises(KeyError, match="Did you mean 'arm'"):
        plot.title({"arn": 1}, VARIABLES)


def test_grid_shows_each_value_where_it_belongs():
    counter = {"a": pictures(value=0.7), "b": pictures(value=0.1)}
    axes = plot.grid(pictures(), counter, {"a": pictures(value=0.4)}, captions={"b": ["p", "q"]})
    heads = [ax.get_title() for ax in axes[0]]
    assert heads == [
        "factual", "counterfactual", "truth", "minus truth", "counterfactual", "minus factual",
    ]  # fmt: skip
    means = [float(np.mean(ax.images[0].get_array())) for ax in axes[1]]
    assert np.allclose(means, [0.5, 0.7, 0.4, 0.3, 0.1, -0.4])
    assert [ax.get_xlabel() for ax in axes[:, 4]] == ["p", "q"]
    groups = [t.get_text() for ax in axes[0] for t in ax.texts if t.get_text()]
    assert groups == ["a", "b"]


def test_difference_does_not_depend_on_the_other_rows():
    both = np.concatenate([pictures(1, value=0.9), pictures(1, value=0.4)])
    axes = plot.grid(pictures(), {"a": both})
    shown = [axes[i, 2].images[0] for i in (0, 1)]
    assert [image.get_clim() for image in shown] == [(-1, 1), (-1, 1)]
    assert np.allclose([image.get_array().mean() for image in shown], [0.4, -0.1])


def test_colours_survive_being_printed_in_grey_and_every_common_colour_vision():
    rgb = difference_map()(np.linspace(0, 1, 101))[:, :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lightness = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()
    assert lightness[-1] > 10 * lightness[0]
    middle = rgb[50]
    assert np.ptp(middle) < 0.02
    blind = {  # Vienot, Brettel and Mollon (1999): red and green cones seen as one
        "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    }
    for matrix in blind.values():
        seen = linear @ np.transpose(matrix)
        warm = seen[:, 0] - seen[:, 2]
        assert warm[75] > 0.05
        assert warm[25] < -0.05


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_is_drawn_and_nothing_overlaps(channels):
    counter = {"do(thickness = 4 px)": pictures(3, channels), "b": pictures(3, channels)}
    captions = {name: ["2.0 px, 100"] * 3 for name in ("factual", *counter)}
    axes = plot.grid(pictures(3, channels), counter, captions=captions)
    figure = axes[0, 0].figure
    image = drawn(figure)
    assert image[..., :3].std() > 20
    canvas = figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else None
    texts = [t for ax in axes.ravel() for t in (ax.title, ax.xaxis.label, *ax.texts)]
    boxes = [t.get_window_extent(canvas) for t in texts if t.get_text()]
    for i, one in enumerate(boxes):
        assert one.x0 >= 0
        assert one.y0 >= 0
        assert one.x1 <= figure.bbox.x1
        assert one.y1 <= figure.bbox.y1
        assert not any(one.overlaps(other) for other in boxes[i + 1 :])


def test_grid_draws_on_given_axes():
    from matplotlib.figure import Figure

    mine = Figure().subplots(2, 3)
    assert plot.grid(pictures(), {"a": pictures()}, axes=mine) is mine
    with pytest.raises(ValueError, match=r"axes of shape \(2, 3\), got \(2, 2\)"):
        plot.grid(pictures(), {"a": pictures()}, axes=Figure().subplots(2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((pictures(), {}), "at least one intervention"),
        ((pictures(), {"a": pictures(3)}), r"'a' has shape \(3, .*, the factual \(2"),
        ((pictures(), {"a": pictures()}, {"b": pictures()}), r"truth names 'b'; there are \['a'\]"),
        ((pictures(), {"a": pictures()}, {"a": pictures(3)}), "the truth of 'a' has shape"),
        ((np.zeros((2, 8, 8)), {"a": pictures()}), r"'factual' has shape \(2, 8, 8\)"),
        ((pictures(channels=2), {"a": pictures()}), "pictures are"),
    ],
)
def test_grid_refuses_what_is_no_picture(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot.grid(*arguments)


def test_graph_has_every_edge_and_unit():
    graph = Graph.parse("t -> x; arm -> x")
    ax = plot.graph(graph, variables=VARIABLES)
    assert sorted(t.get_text() for t in ax.texts) == ["arm", "t\npx", "x"]
    assert len(ax.patches) == 2
    assert drawn(ax.figure)[..., :3].std() > 5
    from matplotlib.figure import Figure

    mine = Figure().subplots()
    assert plot.graph(graph, mine, labels={"x": "picture"}) is mine
    assert "picture" in [t.get_text() for t in mine.texts]


def history(steps=200):
    step = np.arange(1, steps + 1)
    frame = pandas.DataFrame({"step": step, "x.nll": 1 / step, "loss": 2 / step})
    held = pandas.DataFrame({"step": [100, 200], "valid/loss": [0.5, 0.25]})
    return pandas.concat([frame, held], ignore_index=True)


def test_training_has_one_picture_a_term():
    axes = plot.training(history())
    assert [ax.get_title() for ax in axes] == ["loss", "x.nll"]
    raw, smooth, held = axes[0].lines
    assert np.allclose(raw.get_ydata(), 2 / np.arange(1, 201))
    assert np.allclose(smooth.get_ydata()[100], np.mean(2 / np.arange(99, 103)), rtol=1e-3)
    assert held.get_xydata().tolist() == [[100, 0.5], [200, 0.25]]
    assert axes[0].get_ylim()[1] < 1.0  # the first step's 2.0 does not set the scale
    assert len(axes[1].lines) == 2
    assert drawn(axes[0].figure)[..., :3].std() > 5


def test_training_refuses_what_is_no_history():
    with pytest.raises(ValueError, match="needs a column 'step'"):
        plot.training(pandas.DataFrame({"loss": [1.0]}))
    with pytest.raises(ValueError, match="2 terms but 1 axes"):
        plot.training(history(), axes=plot.training(history())[:1])


def test_markdown_is_a_table_again():
    frame = pandas.DataFrame({"a|b": ["1 ± 2", ""], "c": [3.5, "x\ny"]}, index=["r", "s"])
    lines = plot.markdown(frame, "k").splitlines()
    assert lines[0] == r"| k | a\|b | c |"
    assert lines[1] == "|---|---|---|"
    assert lines[2:] == ["| r | 1 ± 2 | 3.5 |", "| s |  | x y |"]


def test_pictures_need_no_display_and_leave_pyplot_alone():
    script = """
import sys
import numpy as np
import subjunctive as sj
from subjunctive import plot
sj.Graph.parse("t -> x").draw()
axes = plot.grid(np.zeros((1, 1, 4, 4)), {"a": np.ones((1, 1, 4, 4))})
axes[0, 0].figure.savefig(sys.stdout.buffer, format="png")
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"\x89PNG")
