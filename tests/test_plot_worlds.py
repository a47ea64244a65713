from itertools import pairwise
from types import SimpleNamespace

import linear_gaussian as lg
import numpy as np
import pandas
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from subjunctive.data.pendulum import Pendulum
from subjunctive.effect import mediation as split
from subjunctive.effect import strengths as measured
from subjunctive.graph import Graph
from subjunctive.intervention import Shift
from subjunctive.mechanisms.known import Known
from subjunctive.mechanisms.linear import LinearGaussian
from subjunctive.metrics.evaluate import evaluate
from subjunctive.plot.bars import TRIVIAL, evaluation, mediation, strengths
from subjunctive.plot.worlds import BETWEEN, STRIP, animate, shift, traversal
from subjunctive.query import counterfactual
from subjunctive.scm import SCM
from subjunctive.variable import Batch, Variable

T = Variable("t", loc=2.0, scale=0.5, unit="px")
ARM = Variable("arm", kind="categorical", categories=("placebo", "drug"))
BLOOD = Variable("blood", kind="categorical", categories=("A", "B", "AB"))
STAGE = Variable("stage", kind="ordinal", categories=("I", "II", "III"))


@pytest.fixture(autouse=True)
def no_pyplot():
    """No figure goes through pyplot."""
    yield
    assert not Gcf.get_all_fig_managers()


def known(variable, parents, fn, inverse=None):
    return Known(variable, parents, fn, inverse, torch.distributions.Normal(0.0, 1.0))


def scm(text, *mechanisms):
    return SCM(Graph.parse(text), {m.variable.name: m for m in mechanisms})


def photographs(channels=1, side=4):
    """t -> x, pixels sigmoid(u + t)."""
    x = Variable("x", (channels, side, side))
    mechanism = Known(
        x,
        [T],
        lambda u, pa: torch.sigmoid(u + pa["t"][:, None, None, None]),
        lambda x, pa: torch.logit(x) - pa["t"][:, None, None, None],
    )
    return scm("t -> x", LinearGaussian.of(T), mechanism)


def shown(ax):
    return np.asarray(ax.images[0].get_array()).squeeze()


def channels_last(pictures):
    return pictures.permute(0, 2, 3, 1).squeeze(-1).numpy()


def overlapping(texts, figure):
    """Pairs of texts that overlap, and texts that reach out of the figure."""
    FigureCanvasAgg(figure).draw()
    boxes = {t.get_text(): t.get_window_extent() for t in texts if t.get_text()}
    out = [a for a, box in boxes.items() if box.x0 < 0 or box.y0 < 0]
    out += [a for a, b in boxes.items() if b.x1 > figure.bbox.x1 or b.y1 > figure.bbox.y1]
    pairs = [(a, b) for a in boxes for b in boxes if a < b]
    return out + [(a, b) for a, b in pairs if boxes[a].overlaps(boxes[b])]


# Traversals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_a_traversal_shows_the_factual_and_every_counterfactual(channels):
    model = photographs(channels)
    seen, values = model.sample(2, seed=1), [1.0, 3.0]
    axes = traversal(model, seen, "t", values)
    assert axes.shape == (2, 3)
    answers = counterfactual(model, seen, [{"t": v} for v in values], seed=0)
    columns = [seen["x"], *(a["x"] for a in answers)]
    for j, pictures in enumerate(columns):
        for i, picture in enumerate(channels_last(pictures)):
            np.testing.assert_allclose(shown(axes[i, j]), picture, atol=1e-6)
            assert axes[i, j].images[0].get_clim() == (0, 1)
    heads = ["factual", "do(t\n= 1 px)", "do(t\n= 3 px)"]
    assert [ax.get_title() for ax in axes[0]] == heads
    assert [ax.get_xlabel() for ax in axes[:, 0]] == [f"{v:.3g} px" for v in seen["t"].tolist()]
    texts = [t for ax in axes.ravel() for t in (ax.title, ax.xaxis.label)]
    assert not overlapping(texts, axes[0, 0].figure)


class Counted:
    """A model that counts its abductions, which are draws."""

    def __init__(self, model):
        self.model, self.graph, self.variables, self.rows = model, model.graph, model.variables, []

    def noise(self, n):
        return self.model.noise(n)

    def abduct(self, evidence):
        self.rows.append(len(evidence))
        return self.model.abduct(evidence)

    def predict(self, noise, do=None):
        return self.model.predict(noise, do)


def test_all_values_share_one_abduction_also_where_the_picture_was_not_seen():
    model = Counted(photographs())
    axes = traversal(model, {"t": torch.tensor([2.5, 1.5])}, "t", [2.5, 1.5], seed=3)
    assert model.rows == [2]
    for i in (0, 1):  # doing what was seen changes nothing, if the noise is the same
        np.testing.assert_allclose(shown(axes[i, 0]), shown(axes[i, 1 + i]), atol=1e-6)
        assert np.abs(shown(axes[i, 0]) - shown(axes[i, 2 - i])).mean() > 0.05


def test_rows_that_saw_the_picture_show_it_and_others_the_models_own():
    model, values = photographs(), photographs().sample(2, seed=1)
    batch = Batch(values, {"x": torch.tensor([True, False]), "t": torch.tensor([False, True])})
    with pytest.raises(ValueError, match="encoder"):
        traversal(model, batch, "t", [2.0])
    batch = Batch(values, {"x": torch.tensor([True, False])})
    axes = traversal(model, batch, "t", [values["t"][1].item()])
    np.testing.assert_array_equal(shown(axes[0, 0]), channels_last(values["x"])[0])
    np.testing.assert_allclose(shown(axes[1, 0]), shown(axes[1, 1]), atol=1e-6)
    assert np.abs(shown(axes[1, 0]) - channels_last(values["x"])[1]).max() > 0.05


def test_a_traversal_takes_interventions_frames_and_axes():
    model, mine = photographs(), Figure().subplots(2, 2)
    seen = model.sample(2, seed=0)
    assert traversal(model, seen, "t", [Shift(-0.123456)], image="x", axes=mine) is mine
    assert mine[0, 1].get_title() == "do(t\n- 0.123456 px)"
    frame = pandas.DataFrame({"t": [2.0, None]})
    axes = traversal(model, frame, "t", np.linspace(1, 2, 4)[1:3])
    assert [ax.get_xlabel() for ax in axes[:, 0]] == ["2 px", ""]
    assert axes[0, 1].get_title() == "do(t\n= 1.33 px)"


def two_pictures():
    a, b, c = Variable("a", (1, 2, 2)), Variable("b", (1, 2, 2)), Variable("c", (2, 2, 2))
    parts = [LinearGaussian(T), *(LinearGaussian(v, [T]) for v in (a, b, c))]
    return scm("t -> a; t -> b; t -> c", *parts)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (photographs, {"node": "tt"}, r"traversal\(\) names unknown node 'tt'.*mean 't'"),
        (photographs, {"image": "xx"}, "unknown node 'xx'.*mean 'x'"),
        (photographs, {"image": "t"}, r"draws pictures .*'t' has shape \(\).*model: \['x'\]"),
        (photographs, {"values": []}, "needs at least one value of 't'"),
        (photographs, {"axes": np.zeros((1, 1))}, r"axes of shape \(2, 3\), got \(1, 1\)"),
        (two_pictures, {}, r"several, \['a', 'b', 'c'\]: name one"),
        (two_pictures, {"image": "c"}, r"draws pictures .*'c' has shape \(2, 2, 2\)"),
        (lg.scm, {}, "the model has none: see plot.shift"),
    ],
)
def test_a_traversal_teaches(make, arguments, message):
    call = {"node": "t", "values": [1.0, 2.0]} | arguments
    with pytest.raises((KeyError, ValueError), match=message):
        traversal(make(), {"t": torch.tensor([1.0, 2.0])}, **call)


# Animations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_goes_there_and_back_and_holds_the_counterfactuals(channels, tmp_path):
    model = photographs(channels, side=3)
    seen, values = model.sample(2, seed=1), [1.0, 2.0, 3.0]
    out = tmp_path / "new" / "t.gif"
    assert animate(model, seen, "t", values, str(out), scale=2, seconds=0.25) == out
    assert [p.name for p in out.parent.iterdir()] == ["t.gif"]
    answers = counterfactual(model, seen, [{"t": v} for v in values], seed=0)
    with Image.open(out) as film:
        assert film.n_frames == 4
        assert film.info["loop"] == 0
        for k, which in enumerate([0, 1, 2, 1]):
            film.seek(k)
            assert film.info["duration"] == 250
            frame = np.asarray(film.convert("RGB"))
            assert frame[:STRIP].min() < 100 < frame[:STRIP].max()  # the title
            for i, picture in enumerate(channels_last(answers[which]["x"])):
                left = i * (3 + 1) * 2  # two pixels a pixel, one between the pictures
                own = frame[STRIP : STRIP + 6, left : left + 6]
                expected = np.kron(picture.reshape(3, 3, -1) * 255, np.ones((2, 2, 1)))
                np.testing.assert_allclose(own, np.broadcast_to(expected, own.shape), atol=0.51)
            assert (frame[STRIP:, 6:8] == BETWEEN).all()


def test_an_animation_of_one_value_stands_still_and_titles_fit(tmp_path):
    model = photographs()
    animate(model, model.sample(1, seed=0), "t", [123.456], tmp_path / "a.GIF", scale=1)
    with Image.open(tmp_path / "a.GIF") as film:
        assert film.n_frames == 1
        assert film.size[1] == STRIP + 4
        strip = np.asarray(film.convert("L"))[:STRIP]
    assert strip.shape[1] > 60
    assert (strip[:, -2:] == 255).all()


def test_a_failed_animation_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    model, out = photographs(), tmp_path / "t.gif"
    seen = model.sample(1, seed=0)
    animate(model, seen, "t", [1.0, 2.0], out)
    before = out.read_bytes()

    def full(self, file, **options):
        file.write_bytes(b"GIF89a")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="no space left"):
        animate(model, seen, "t", [3.0, 4.0], out)
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("t.png", {}, r"writes a GIF; .*t.png should be a file that ends in .gif"),
        ("", {}, "ends in .gif"),
        ("t.gif", {"seconds": 0}, "seconds of at least 0.01 .* got 0 and 4"),
        ("t.gif", {"scale": 0}, "whole scale of at least 1; got 0.1 and 0"),
        ("t.gif", {"scale": 1.5}, "got 0.1 and 1.5"),
        ("t.gif", {"node": "u"}, r"animate\(\) names unknown node 'u'"),
    ],
)
def test_an_animation_teaches(name, arguments, message, tmp_path):
    call = {"node": "t", "values": [1.0]} | arguments
    with pytest.raises((KeyError, ValueError), match=message):
        animate(photographs(), {"t": torch.ones(1)}, path=tmp_path / name, **call)
    assert not list(tmp_path.iterdir())


# Shifts --------------------------------------------------------------------------------------


def worlds_of(model, do, n, seed):
    """The two worlds on one noise, by hand."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        noise = model.noise(n)
    with torch.no_grad():
        return model.predict(noise), model.predict(noise, do)


def test_a_shift_is_two_histograms_of_one_noise_in_the_same_bins():
    model = lg.scm()
    axes = shift(model, {"t": -0.5}, n=500, seed=7)
    assert [ax.get_xlabel() for ax in axes] == ["m", "y", "w"]
    assert [ax.get_ylabel() for ax in axes] == ["share of draws", "", ""]
    before, after = worlds_of(model, {"t": -0.5}, 500, 7)
    for ax, name in zip(axes, ("m", "y", "w"), strict=True):
        first, second = (patch.get_data() for patch in ax.patches)
        np.testing.assert_array_equal(first.edges, second.edges)
        for data, world in ((first, before), (second, after)):
            assert data.values.sum() == pytest.approx(1)
            counts = np.histogram(world[name].numpy(), first.edges)[0]
            np.testing.assert_allclose(data.values, counts / 500)
    legend = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert legend == ["before", "do(t = -0.5)"]


def test_a_shift_by_nothing_moves_nothing():
    first, second = (p.get_data().values for p in shift(lg.scm(), {"t": Shift(0.0)})[0].patches)
    np.testing.assert_array_equal(first, second)


def clinic():
    """dose -> stage -> x, dose -> arm -> x; the picture x must not be computed."""
    dose = Variable("dose", unit="mg")
    x = Variable("x", (1, 4, 4))

    def broken(u, pa):
        raise RuntimeError("the picture was computed")

    return scm(
        "dose -> stage; dose -> arm; stage -> x; arm -> x",
        LinearGaussian.of(dose),
        known(STAGE, [dose], lambda u, pa: 1 + (u + pa["dose"] > 0).long()),
        known(ARM, [dose], lambda u, pa: (u + pa["dose"] > 0).long()),
        Known(x, [STAGE, ARM], broken),
    )


def test_categories_have_bars_and_pictures_are_left_out():
    axes = shift(clinic(), {"dose": 1.0}, n=400)
    assert [ax.get_xlabel() for ax in axes] == ["stage", "arm"]
    before, after = axes[0].containers
    assert before[0].get_height() == 0  # no row is in stage I
    for name, ax in zip(("stage", "arm"), axes, strict=True):
        worlds = worlds_of(clinic().ancestral(["stage", "arm"]), {"dose": 1.0}, 400, 0)
        for bars, world in zip(ax.containers, worlds, strict=True):
            heights = [bar.get_height() for bar in bars]
            counts = np.bincount(world[name].numpy(), minlength=len(heights))
            np.testing.assert_allclose(heights, counts / 400)
            assert sum(heights) == pytest.approx(1)
    assert [t.get_text() for t in axes[0].get_xticklabels()] == ["I", "II", "III"]
    assert not before[0].get_hatch()
    assert after[0].get_hatch()
    mine = Figure().subplots(1, 2)
    named = shift(clinic(), {"arm": "drug"}, nodes=["dose"], axes=mine)
    assert named[0] is mine[0]
    assert named[0].get_xlabel() == "dose (mg)"


@pytest.mark.parametrize(
    ("do", "arguments", "message"),
    [
        ({"dos": 1.0}, {}, r"do\(\) names unknown node 'dos'.*mean 'dose'"),
        ({}, {}, r"needs an intervention and at least 2 draws, got do=\{\}"),
        ({"dose": 1.0}, {"n": 1}, "at least 2 draws, .*n=1"),
        ({"dose": 1.0}, {"nodes": ["stag"]}, r"shift\(\) names unknown node 'stag'"),
        ({"dose": 1.0}, {"nodes": ["x"]}, r"draws scalar nodes.*\['x'\] are none"),
        ({"dose": 1.0}, {"nodes": []}, "at least one"),
        ({"arm": 1}, {}, r"no scalar node lies below \['arm'\].*below are \['x'\]"),
        ({"dose": 1.0}, {"axes": np.zeros(1)}, "2 nodes but 1 axes"),
    ],
)
def test_a_shift_teaches(do, arguments, message):
    with pytest.raises((KeyError, ValueError), match=message):
        shift(clinic(), do, **arguments)


def test_the_users_generator_is_left_alone():
    pictures, table = photographs(), lg.scm()
    state = torch.get_rng_state()
    traversal(pictures, {"t": torch.ones(1)}, "t", [1.0])
    shift(table, {"y": 1.0}, n=10)
    strengths(table, n=10)
    assert torch.equal(state, torch.get_rng_state())


# Mediation -----------------------------------------------------------------------------------


def errors(ax):
    """The half-lengths of the error bars, in the order in which they were drawn."""
    found = [c for c in ax.containers if not hasattr(c, "patches")]
    return [
        (s[1, 1] - s[0, 1]) / 2 for c in found for lines in c.lines[2] for s in lines.get_segments()
    ]


def test_mediation_draws_the_table_and_its_errors():
    result = split(lg.scm(), "t", "y", ["m"], (-1.0, 0.0), draws=50, seed=0)
    result["standard_error"] = [0.5, 0.25, 0.125, 1.0]
    ax = mediation(result, unit="px")
    assert [bar.get_height() for bar in ax.patches] == result.estimate.tolist()
    assert errors(ax) == pytest.approx([0.5, 0.25, 0.125, 1.0])
    names = [text.get_text().replace("\n", " ") for text in ax.get_xticklabels()]
    assert names == ["total", "natural direct", "natural indirect", "natural indirect, reversed"]
    assert ax.get_ylabel() == "effect on the outcome (px)"
    assert len({bar.get_hatch() for bar in ax.patches}) == 4
    mine = Figure().subplots()
    assert mediation(result.loc[["NDE", "TE"]], mine) is mine
    assert [bar.get_height() for bar in mine.patches] == result.estimate[["TE", "NDE"]].tolist()


@pytest.mark.parametrize(
    "result",
    [pandas.DataFrame({"estimate": [1.0]}, ["TE"]), pandas.DataFrame({"a": [1.0]}, ["b"])],
)
def test_mediation_refuses_another_table(result):
    with pytest.raises(ValueError, match=r"draws what effect.mediation returned.*got rows"):
        mediation(result)


# Strengths -----------------------------------------------------------------------------------


def test_strengths_are_written_and_drawn_on_their_arrows():
    x = Variable("x", (1, 2, 2))
    picture = Known(x, [lg.variables()["w"]], lambda u, pa: u + pa["w"][:, None, None, None])
    whole = SCM(Graph.parse("z -> t -> m -> y; z, t -> y; y -> w -> x"),
                dict(lg.scm().mechanisms) | {"x": picture})  # fmt: skip
    found, ax = measured(whole, n=100, seed=5), strengths(whole, n=100, seed=5)
    edges = [(a, b) for a, _, b in whole.graph.edges]
    texts, arrows = ax.texts[len(whole.graph) :], ax.patches[-len(edges) :]
    sizes = []
    for edge, text, arrow in zip(edges, texts, arrows, strict=True):
        value, signed = found[edge]
        assert text.get_text() == (f"{value:+.2f}" if signed else f"{value:.2f}")
        assert (arrow.get_linestyle() == "-") == (value > 0)
        sizes.append((abs(value), arrow.get_linewidth()))
    assert not found["w", "x"].signed
    assert min(found.values()).value < 0
    assert all(w0 < w1 for (_, w0), (_, w1) in pairwise(sorted(sizes)))


def test_nothing_that_strengths_writes_overlaps():
    v = {n: Variable(n, unit="px" if n == "e" else "") for n in "abcde"}
    graph = Graph.parse("a, b -> c; a, b -> d; c, d -> e; a -> e")
    parts = {n: LinearGaussian.of(v[n], [v[p] for p in graph.parents(n)],
                                  weights=[0.3 + 0.1 * i for i, _ in enumerate(graph.parents(n))])
             for n in graph.nodes}  # fmt: skip
    ax = strengths(SCM(graph, parts))
    assert "e\npx" in [t.get_text() for t in ax.texts]
    assert not overlapping(ax.texts, ax.figure)
    mine = Figure().subplots()
    assert strengths(SCM(graph, parts), n=2, ax=mine) is mine
    alone = strengths(scm("a", LinearGaussian.of(v["a"])))
    assert [t.get_text() for t in alone.texts] == ["a"]


def test_strengths_teach():
    with pytest.raises(ValueError, match="asks every node's mechanism, which Counted has not"):
        strengths(Counted(lg.scm()))
    with pytest.raises(ValueError, match="at least 2 rows, got n=1"):
        strengths(lg.scm(), n=1)


# Evaluations ---------------------------------------------------------------------------------

METHODS = ["mine", "yours", "oracle", "copy", "retrieval"]


def judged():
    """A frame as `evaluate` makes it; do(t) has no distance of t, retrieval none under do(i)."""
    rows = [
        (m, f"do({d})", s, "distance", node, 1.0 + k + 10 * (d == "i") + 100 * (node == "x"), unit)
        for s in ("inside", "outside")
        for k, m in enumerate(METHODS)
        for d in ("t", "i")
        for node, unit in (("x", ""), ("t", "px"), ("i", "nats"))
        if node != d and (m, d) != ("retrieval", "i")
    ]
    names = ["method", "intervention", "support", "metric", "node", "value", "unit"]
    frame = pandas.DataFrame(rows, columns=names)
    frame["standard_error"] = frame.value / 10
    frame["floor"] = np.where(frame.intervention == "do(t)", 0.5, 0.75)
    leak = {"support": "observed", "metric": "leak", "intervention": "do()", "node": "x"}
    own = frame.iloc[[0, 6]].assign(**leak, method=METHODS[:2], floor=[0.1, 0.2], value=[3.0, 4.0])
    return pandas.concat([frame, own], ignore_index=True)


def bars(ax):
    """method -> its bars."""
    return {c.get_label(): list(c.patches) for c in ax.containers if hasattr(c, "patches")}


def segments(ax):
    """The dashed lines: (left, right, height)."""
    found = [s for c in ax.collections if c.get_linestyle()[0][1] for s in c.get_segments()]
    return [(*s[:, 0], s[0, 1]) for s in found]


def test_an_evaluation_has_a_bar_a_method_in_a_group_an_intervention():
    ax = evaluation(judged(), "distance", node="x")
    assert list(bars(ax)) == METHODS
    for k, (method, own) in enumerate(bars(ax).items()):
        values = [101.0 + k] if method == "retrieval" else [101.0 + k, 111.0 + k]
        assert [bar.get_height() for bar in own] == values
        centres = [bar.get_x() + bar.get_width() / 2 for bar in own]
        assert np.round(centres).tolist() == list(range(len(own)))
    lefts = [own[0].get_x() for own in bars(ax).values()]
    assert lefts == sorted(lefts)
    assert errors(ax) == pytest.approx([h / 10 for own in bars(ax).values() for h in
                                        (bar.get_height() for bar in own)])  # fmt: skip
    assert [t.get_text() for t in ax.get_xticklabels()] == ["do(t)", "do(i)"]
    assert ax.get_ylabel() == "distance of x"
    (left, right, floor), (after, end, other) = segments(ax)
    assert (floor, other) == (0.5, 0.75)
    assert left == pytest.approx(bars(ax)["mine"][0].get_x())
    last = bars(ax)["retrieval"][0]
    assert right == pytest.approx(last.get_x() + last.get_width())
    assert after == pytest.approx(bars(ax)["mine"][1].get_x())
    last = bars(ax)["copy"][1]
    assert end == pytest.approx(last.get_x() + last.get_width())
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == [*METHODS, "noise floor"]


def test_trivial_answers_are_hatched_and_paler_than_models_also_in_grey():
    drawn = bars(evaluation(judged(), "distance", node="x"))
    grey = {
        m: np.dot(to_rgb(own[0].get_facecolor()), [0.3, 0.59, 0.11]) for m, own in drawn.items()
    }
    hatch = {m: own[0].get_hatch() for m, own in drawn.items()}
    assert max(grey["mine"], grey["yours"]) < min(grey[m] for m in METHODS[2:]) - 0.1
    assert not hatch["mine"]
    assert not hatch["yours"]
    assert len({hatch[m] for m in METHODS[2:]} - {"", None}) == 3


def test_the_trivial_answers_are_those_that_evaluate_gives():
    data = SimpleNamespace(**vars(Pendulum(size=24, train=8, valid=2, test=4)))
    data.rescale_node = "light"
    frame = evaluate({}, data, do={"light": [90.0]}, metrics=["distance"], progress=False)
    assert set(frame.method) == set(TRIVIAL)


def test_an_evaluation_of_one_node_and_its_own_floors():
    frame = judged()
    ax = evaluation(frame, "distance", node="i", support="outside")
    assert ax.get_ylabel() == "distance of i (nats)"
    assert [bar.get_height() for own in bars(ax).values() for bar in own] == [1, 2, 3, 4, 5]
    ax = evaluation(frame, "leak", support="observed")  # chance says another thing of each
    assert [height for _, _, height in segments(ax)] == [0.1, 0.2]
    assert not overlapping(ax.get_legend().get_texts(), ax.figure)
    frame.loc[frame.metric == "leak", "floor"] = np.nan
    frame.loc[frame.metric == "leak", "standard_error"] = np.nan
    mine = Figure().subplots()
    assert evaluation(frame, "leak", support="observed", ax=mine) is mine
    assert segments(mine) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "distanse"}, r"no metric 'distanse'; it has \['distance', .*mean 'distance'"),
        ({"support": "outsid"}, r"'distance' has no support 'outsid'.*mean 'outside'"),
        ({"metric": "leak"}, r"'leak' has no support 'inside'; it has \['observed'\]"),
        ({}, r"'distance' is of several nodes, \['x', 'i', 't'\]; name one"),
        ({"node": "y"}, r"'distance', inside, has no node 'y'"),
    ],
)
def test_an_evaluation_teaches(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluation(judged(), **({"metric": "distance"} | arguments))


def test_an_evaluation_refuses_another_frame_and_two_at_once():
    with pytest.raises(ValueError, match=r"the frame lacks \['floor'\]"):
        evaluation(judged().drop(columns="floor"), "distance")
    twice = pandas.concat([judged(), judged()])
    with pytest.raises(ValueError, match=r"'mine' has several rows of 'distance' under do\(t\)"):
        evaluation(twice, "distance", node="x")
