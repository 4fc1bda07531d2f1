import base64
import html.parser
import io
import re

import numpy as np
import PIL.Image
import pytest

from nova_jax import atomic
from nova_jax.evaluation import plots, report

EVIL = "\"><script>alert('x')</script><img src=https://example.com/a.png onerror=alert(1)> & <b>bold</b>"


class Page(html.parser.HTMLParser):
    """Collects tags and text, and checks that tags close in order."""

    VOID = ("meta", "img", "path", "rect", "circle", "br")

    def __init__(self, document):
        super().__init__()
        self.stack, self.tags, self.text = [], [], ""
        self.feed(document)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data


def picture(seed=0, shape=(6, 8, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module")
def document():
    sections = {
        "Run": [EVIL, report.facts({"prompt": EVIL, "config": {"steps": 5000, "lr": 1e-4}, EVIL: EVIL})],
        "Loss": [plots.draw([plots.Series(EVIL, [0, 1], [1, 2])], x_label=EVIL)],
        "Samples": [report.images([picture(), picture(1)], [EVIL, "a star"], zoom=4, verdicts=[True, None])],
        "Scores": [report.scores([report.Score(EVIL, 0.8, 0.7, 0.9, chance=0.1, num_samples=1200)])],
        EVIL: [report.command(EVIL), report.table([EVIL, "n"], [[EVIL, 0.12345678]])],
    }
    return report.page(EVIL, sections, subtitle=EVIL)


def test_a_page_is_well_formed(document):
    page = Page(document)
    assert page.tags[0][0] == "html"
    assert "5000" in page.text
    assert "config.lr" in page.text
    assert "0.1235" in page.text


def test_prompts_stay_text(document):
    page = Page(document)
    assert "script" not in [tag for tag, _ in page.tags]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count(EVIL) >= 8


def test_nothing_outside_the_page_is_referred_to(document):
    page = Page(document)
    targets = [attributes[key] for _, attributes in page.tags for key in ("src", "href") if attributes.get(key)]
    assert targets
    assert all(target.startswith(("data:image/png;base64,", "#")) for target in targets)
    assert not re.search(r"url\(|@import", document)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_links_lead_to_their_sections(document):
    page = Page(document)
    links = [attributes["href"][1:] for tag, attributes in page.tags if tag == "a"]
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert links == ids
    assert len(set(ids)) == 5


def embedded(markup):
    return PIL.Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", markup)[1])))


@pytest.mark.parametrize("shape", [(6, 8, 3), (6, 8, 1), (6, 8, 4), (1, 6, 8, 3)])
def test_pictures_are_embedded_without_loss(shape):
    pixels = picture(shape=shape)
    np.testing.assert_array_equal(np.asarray(embedded(report.images([pixels]))).ravel(), pixels.ravel())


def test_a_clip_plays_all_its_frames():
    clip = picture(shape=(5, 6, 8, 3))
    image = embedded(report.images([clip], zoom=2))
    assert (image.n_frames, image.size) == (5, (8, 6))
    image.seek(3)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), clip[3])


@pytest.mark.parametrize("bad", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 2), np.uint8)])
def test_what_is_no_picture_is_refused(bad):
    with pytest.raises(ValueError, match="must be uint8"):
        report.images([bad])


def test_every_picture_needs_its_caption():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        report.images([picture(), picture()], ["one"])


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_colours_have_the_contrast_that_wcag_asks_for(theme):
    """4.5 for text and for lines, which carry text of the same colour nowhere but are thin."""
    colours = dict(re.findall(r"--(\w+): (#\w{6})", report.STYLE.split("@media (prefers-color-scheme: dark)")[theme]))
    paper = luminance(colours["paper"])
    for name in ("ink", "soft", "good", "bad", *(f"c{i}" for i in range(plots.NUM_COLOURS))):
        light, dark = sorted((luminance(colours[name]), paper), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5, name


def test_a_page_is_written_whole(tmp_path):
    atomic.write(tmp_path / "report.html", report.page("A", {"B": ["größe 猫"]}))
    assert "größe 猫" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
