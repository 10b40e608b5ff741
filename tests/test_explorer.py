"""visualize.py explorer: the page in headless Chromium says what PyTorch says, and asks for nothing from outside."""

import base64
import functools
import http.server
import re
import shutil
import threading

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_refused, run
from PIL import Image
from sklearn.datasets import load_sample_images
from test_export import reference

from vitlab.attention.attribution import attention_rollout, grad_cam
from vitlab.attention.faithfulness import area
from vitlab.attention.maps import attention_distance, attention_entropy, features
from vitlab.catalog import DATASETS
from vitlab.checkpoint import load_checkpoint, save_checkpoint
from vitlab.config import TrainConfig
from vitlab.datasets.images import open_image, to_pixels
from vitlab.models.registry import build_model
from vitlab.views.explorer.graphs import runtime_archive
from vitlab.views.explorer.measure import EVIDENCE, INSIDE, TESTED, measure, removal_curves
from vitlab.views.explorer.page import MODULES, MOST_TARGETS, SOURCES, choose_targets, pack

EVIL = ["<script>window.evil = 1</script>", "a \"quoted\" & 'single' </script> name", "x" * 300]
SIZE, GRID, LAYERS, HEADS = 32, 8, 2, 3


def save_model(path, **settings):
    """A small model whose answers depend on the image, with class names that are no markup."""
    sizes = dict(embed_dim=24, depth=LAYERS, num_heads=HEADS) | settings
    config = TrainConfig.create(dataset="cifar10", **sizes)
    model, generator = build_model(config), torch.Generator().manual_seed(3)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator) * 0.15
            value += noise.abs() if "var" in name else noise
    classes = [*EVIL, *DATASETS["cifar10"].classes[3:]]
    save_checkpoint(path, model, config, classes=classes, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26), history=[])
    return load_checkpoint(path)


# ------------------------------------------------------------------------- what needs no browser


@pytest.mark.parametrize("settings", [{}, dict(pool="seq", stem="conv"), dict(pool="mean")])
def test_the_numbers_are_those_of_the_other_commands(tmp_path, settings):
    checkpoint = save_model(tmp_path / "m.pt", **settings)
    pixels = to_pixels(Image.fromarray(load_sample_images().images[0]), SIZE, 3)
    found = measure(checkpoint, pixels, range(2))
    assert set(found) == {*INSIDE, *EVIDENCE}
    logits, attention = reference(checkpoint, pixels[None], return_attention=True)
    torch.testing.assert_close(found["attention"], attention[0])
    torch.testing.assert_close(found["lens"][-1], logits[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found["rollout"][-1], attention_rollout(attention)[0])
    mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (checkpoint.mean, checkpoint.std))
    images = (pixels[None] / 255 - mean) / std
    torch.testing.assert_close(checkpoint.model.head(features(checkpoint.model, images)), logits, atol=1e-5, rtol=0)
    for target in range(2):
        expected = grad_cam(checkpoint.model, images, torch.tensor([target]))[0]  # by captum
        torch.testing.assert_close(found["grad_cam"][target], expected, atol=1e-6, rtol=1e-4)
    assert found["similarity"].shape == (LAYERS + 1, GRID**2, GRID**2)
    torch.testing.assert_close(found["similarity"].diagonal(dim1=1, dim2=2), torch.ones(LAYERS + 1, GRID**2))


def test_curves_are_what_hiding_by_hand_gives(tmp_path):
    checkpoint = save_model(tmp_path / "m.pt")
    pixels = to_pixels(Image.fromarray(load_sample_images().images[0]), SIZE, 3)
    found = measure(checkpoint, pixels, range(10))
    curves = removal_curves(checkpoint, pixels, found)
    assert curves.shape == (2, len(TESTED) + 1, 17)
    target = found["logits"].argmax()
    maps = {
        "attention": found["attention"][-1].mean(0)[0, 1:],
        "rollout": found["rollout"][-1][0, 1:],
        "grad_cam": found["grad_cam"][target].flatten(),
    }
    mean, step = torch.tensor(checkpoint.mean).mul(255), SIZE // GRID
    for which, name in enumerate(TESTED):
        order = maps[name].argsort(descending=True, stable=True).tolist()
        for kind, changed in (("deletion", order[:20]), ("insertion", order[20:])):
            seen = pixels.float()
            for patch in changed:
                row, column = (step * place for place in divmod(patch, GRID))
                seen[:, row : row + step, column : column + step] = mean[:, None, None]
            share = reference(checkpoint, seen[None])[0].softmax(-1)[target]
            torch.testing.assert_close(curves[int(kind == "insertion"), which, 5], share, atol=1e-4, rtol=0)
    torch.testing.assert_close(curves[0, -1, [0, -1]], curves[1, -1, [-1, 0]])
    assert curves[:, :, 5].std() > 0.01


def test_distance_and_entropy_of_known_attention():
    own, even = torch.eye(5)[None], torch.full((1, 5, 5), 0.2)  # CLS and 2 x 2 patches
    assert attention_distance(own).tolist() == [0] and attention_entropy(own).abs().max() < 1e-6
    assert attention_distance(even).item() == pytest.approx((0 + 1 + 1 + 2**0.5) / 4)
    assert attention_entropy(even).item() == pytest.approx(1)
    assert attention_entropy(torch.full((4, 4), 0.25)).item() == pytest.approx(1)


def test_packing_keeps_values_to_8_bits():
    values = torch.rand(2, 5, 7) ** 4
    data = pack(values, "rows")
    codes, scales = (
        np.frombuffer(data[:70], np.uint8).reshape(2, 5, 7),
        np.frombuffer(data[72:], "<f4").reshape(2, 5, 1),
    )
    assert (np.abs(codes * scales - values.numpy()) <= values.amax(-1, keepdim=True).numpy() / 509).all()
    assert np.frombuffer(pack(torch.tensor([-1.0, 0.0, 1.0]), "cosine"), np.uint8)[:3].tolist() == [0, 128, 255]
    assert np.frombuffer(pack(torch.tensor([0.0, 0.5, 1.0]), "share"), np.uint8)[:3].tolist() == [0, 128, 255]


def test_modules_are_short_and_import_earlier_ones_alone():
    assert {path.stem for path in SOURCES.glob("*.js")} == set(MODULES)
    for number, name in enumerate(MODULES):
        text = (SOURCES / f"{name}.js").read_text()
        assert len(text.splitlines()) <= 350
        assert set(re.findall(r'from "\./(\w+)\.js"', text)) <= set(MODULES[:number]), name


def test_words_of_the_tour_are_the_notebooks():
    notebook = " ".join((ROOT / "demos/vit_tutorial.ipynb").read_text().replace('\\n",', " ").replace('"', " ").split())
    tour = (SOURCES / "tour.js").read_text()
    for words in (
        "A Transformer reads a list of vectors, not an image. So the image is cut into",
        "its job is to collect what the other tokens know",
        "Then every token gets a position embedding added",
        "Now the tokens exchange what they know.",
        "Each query is compared with each key",
        "One softmax can hardly attend to several things at once. So there are",
        "everything but CLS is dropped. A last norm",
        "each token holds something of all the others",
    ):
        assert words in tour and words in notebook.replace("*", ""), words


def test_a_cnn_is_refused(tmp_path):
    config = TrainConfig.create(dataset="cifar10", model="tiny_cnn")
    facts = dict(classes=DATASETS["cifar10"].classes, mean=(0.5,) * 3, std=(0.5,) * 3, history=[])
    save_checkpoint(tmp_path / "cnn.pt", build_model(config), config, **facts)
    assert_refused(run("visualize.py", "explorer", "--model_path", tmp_path / "cnn.pt"), "explorer", "tiny_cnn")


# ------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -r requirements-dev.txt")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium: apt install chromium, or playwright install chromium ({str(error)[:80]})")
        yield found
        found.close()


@pytest.fixture(scope="module")
def explorer(tmp_path_factory, browser):
    """(page, checkpoint, pictures): the page about ten real pictures, and what it was made of."""
    if not runtime_archive().is_file():
        pytest.skip(f"no {runtime_archive()}: python visualize.py explorer downloads it")
    root = tmp_path_factory.mktemp("explorer")
    checkpoint = save_model(root / "<b>m.pt")
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    (root / "pictures").mkdir()
    for i in range(10):
        name = "<img src=x onerror=alert(1)>.png" if i == 0 else f"{i}.png"
        photos[i % 2].crop((40 * i, 30 * i, 40 * i + 200, 30 * i + 150)).save(root / "pictures" / name)
    page = root / "page.html"
    args = ["--model_path", root / "<b>m.pt", "--image_path", root / "pictures", "--output_path", page]
    done = run("visualize.py", "explorer", *args)
    assert done.returncode == 0, done.stderr
    return page, checkpoint, sorted((root / "pictures").iterdir())


def open_page(browser, address, **options):
    """A tab with the page, and the list of what went wrong in it: errors, and requests to anywhere else."""
    tab, wrong = browser.new_page(**options), []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    tab.on("request", lambda request: request.url.startswith(("data:", "blob:", address)) or wrong.append(request.url))
    tab.goto(address)
    tab.wait_for_timeout(100)
    assert not wrong
    until(tab, "!!window.vit")
    return tab, wrong


def until(tab, condition, seconds=20):
    """Wait for a condition. playwright's wait_for_function needs eval, which the page's policy forbids."""
    for _ in range(20 * seconds):
        if tab.evaluate(condition):
            return
        tab.wait_for_timeout(50)
    raise AssertionError(condition)


@pytest.fixture
def opened(browser, explorer):
    tab, wrong = open_page(browser, explorer[0].as_uri(), viewport={"width": 1280, "height": 900})
    assert tab.evaluate("vit.ready") is True
    yield tab
    assert not wrong
    tab.close()


def flat(pixels):
    """uint8 C x S x S as the page takes it: row by row."""
    return pixels.permute(1, 2, 0).flatten().tolist()


def shares(checkpoint, pixels):
    return reference(checkpoint, pixels[None]).softmax(-1)[0].numpy()


def predict(tab, pixels):
    return tab.evaluate("pixels => vit.predict(Uint8Array.from(pixels))", flat(pixels))


def canvas(tab, selector):
    code = "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
    return tab.locator(selector).evaluate(code)


def settle(tab):
    """Until what was asked for is drawn."""
    tab.evaluate("vit.predict(new Uint8Array(32 * 32 * 3)).then(() => new Promise(requestAnimationFrame))")
    tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def hover(tab, row, column, click=False):
    tab.locator("#stage").scroll_into_view_if_needed()
    box = tab.locator("#stage").bounding_box()
    at = [
        box[side] + box[length] * (i + 0.5) / GRID for side, length, i in (("x", "width", column), ("y", "height", row))
    ]
    (tab.mouse.click if click else tab.mouse.move)(*at)
    settle(tab)


def test_of_many_classes_each_images_likeliest_has_evidence():
    shares = torch.rand(50, 100, generator=torch.Generator().manual_seed(0)).softmax(-1)
    targets = choose_targets(shares)
    assert set(shares.argmax(1).tolist()) <= set(targets) and len(targets) == len(set(targets)) >= MOST_TARGETS
    assert len(choose_targets(shares[:2])) == MOST_TARGETS and sorted(choose_targets(shares[:, :10])) == list(range(10))


@pytest.mark.slow
def test_predictions_and_attention_are_pytorchs(opened, explorer):
    _, checkpoint, pictures = explorer
    assert opened.evaluate("vit.classes") == list(checkpoint.classes)
    answers, attentions = [], []
    for i, picture in enumerate(pictures):
        pixels = to_pixels(open_image(picture), SIZE, 3)
        answers.append(shares(checkpoint, pixels))
        np.testing.assert_allclose(predict(opened, pixels), answers[-1], atol=1e-3)
        opened.evaluate("i => vit.show(i)", i)
        _, attention = reference(checkpoint, pixels[None], return_attention=True)
        attentions.append(attention[0])
        found = opened.evaluate("Array.from(vit.attention(1, 2))")
        np.testing.assert_allclose(found, attention[0, 1, 2].flatten().numpy(), atol=1e-3)
    distance = [attention_distance(values).flatten() for values in attentions]
    means = opened.evaluate("JSON.parse(document.getElementById('facts').textContent).means.distance")
    np.testing.assert_allclose(means, torch.stack(distance).mean(0).numpy(), atol=1e-4)
    assert np.std(answers, axis=0).max() > 0.02  # the pictures differ
    assert "there are 0 to 9" in opened.evaluate("vit.show(99).catch(error => error.message)")
    assert "has 32 x 32 x 3" in opened.evaluate("vit.predict(new Uint8Array(5)).catch(error => error.message)")


@pytest.mark.slow
def test_pointer_keys_layer_and_head_change_what_is_drawn(opened):
    seen = [canvas(opened, "#maps canvas >> nth=0")]
    hover(opened, 2, 5)
    assert "row 3, column 6 looks most at" in opened.inner_text("#sentence")
    seen.append(canvas(opened, "#maps canvas >> nth=0"))
    opened.focus("#stage")
    for key, words in (("ArrowDown", "row 4, column 6"), ("k", "Layer 1"), ("g", f"head {HEADS}"), ("c", "CLS looks")):
        opened.keyboard.press(key)
        settle(opened)
        assert words in opened.inner_text("#sentence")
        seen.append(canvas(opened, "#maps canvas >> nth=0"))
    assert opened.locator("#distance .dot").count() == opened.locator("#distance .ring").count() == LAYERS * HEADS
    opened.hover("#maps .stack >> nth=1", position={"x": 3, "y": 3})
    assert re.search(r"looked at by: row 1, column 1: [\d.]+ times uniform", opened.inner_text("#sentence"))
    for kind in ("rollout", "grad_cam", "gradient_rollout", "similarity"):
        opened.click(f"[data-kind={kind}]")
        settle(opened)
        opened.wait_for_selector("#maps canvas")
        seen.append(canvas(opened, "#maps canvas >> nth=0"))
    assert len({tuple(pixels) for pixels in seen}) == len(seen)


@pytest.mark.slow
def test_a_hidden_patch_changes_the_answer_as_in_pytorch(opened, explorer):
    _, checkpoint, pictures = explorer
    pixels = to_pixels(open_image(pictures[0]), SIZE, 3)
    hover(opened, 3, 4, click=True)
    until(opened, "document.querySelector('#verdict').textContent.includes('1 of 64')")
    step = SIZE // GRID
    colour = torch.tensor([round(255 * value) for value in checkpoint.mean], dtype=torch.uint8)
    pixels[:, 3 * step : 4 * step, 4 * step : 5 * step] = colour[:, None, None]
    texts = opened.locator("#bars .share").all_inner_texts()
    targets = opened.eval_on_selector_all("#bars .bar", "bars => bars.map(bar => Number(bar.dataset.target))")
    for text, target in zip(texts, targets, strict=True):
        assert float(text.split()[0]) == pytest.approx(100 * shares(checkpoint, pixels)[target], abs=0.1)
    opened.click("#restore")
    until(opened, "!document.querySelector('#verdict').textContent.includes('hidden')")


@pytest.mark.slow
def test_a_map_is_tested_against_random_orders(opened, explorer):
    """By the curves that came with the page, and by the model in the page where there are none."""
    _, checkpoint, pictures = explorer
    pixels = to_pixels(open_image(pictures[0]), SIZE, 3)
    curves = removal_curves(checkpoint, pixels, measure(checkpoint, pixels, [0]))
    for which, kind in enumerate(TESTED):
        opened.click(f"[data-kind={kind}]")
        opened.click("#play-deletion")
        until(opened, "document.querySelector('#belief-verdict').textContent.includes('mean of 5 random orders')")
        found = re.search(r"area ([\d.]+), mean of 5 random orders ([\d.]+) ", opened.inner_text("#belief-verdict"))
        assert [float(text) for text in found.groups()] == pytest.approx(
            area(curves[0, [which, -1]]).tolist(), abs=0.01
        )
        lines = opened.eval_on_selector_all("#belief-curve polyline", "lines => lines.map(line => line.points.length)")
        assert lines == [17, 17]
    cut = "texts => texts.map(text => text.getBBox().x - text.ownerSVGElement.viewBox.baseVal.x)"
    assert min(opened.eval_on_selector_all("#belief-curve text", cut)) >= 0  # no label is cut off
    hover(opened, 3, 4, click=True)  # the image without that patch is tested
    until(opened, "document.querySelector('#verdict').textContent.includes('1 of 64')")
    shown = float(opened.locator("#bars .share").first.inner_text().split()[0]) / 100
    empty = "document.querySelector('#belief-curve polyline[points=\"\"]')"  # also when new maps have ended the play
    done = "document.querySelector('#belief-verdict').textContent.includes('one random order')"
    until(opened, f"(({empty} && document.querySelector('#play-deletion').click()), {done})")
    first = "lines => lines.map(line => line.points[0].y)"  # 150 is 0 %, 15 is 100 %
    for y in opened.eval_on_selector_all("#belief-curve polyline", first):
        assert (150 - y) / 135 == pytest.approx(shown, abs=0.002)
    opened.click("#restore")
    until(opened, "!document.querySelector('#verdict').textContent.includes('hidden')")
    opened.click("[data-kind=attention]")
    opened.click("#film button >> nth=0")
    opened.click("#play-deletion")
    until(opened, "document.querySelector('#belief-verdict').textContent.includes('one random order')")


@pytest.mark.slow
def test_a_photo_of_ones_own_is_seen_as_test_py_sees_it(opened, explorer, tmp_path):
    """A photo that EXIF turns, and one of 20 megapixels, while which is read the page's timers go on."""
    _, checkpoint, _ = explorer
    photo = Image.fromarray(load_sample_images().images[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.png", exif=exif)
    photo.resize((5472, 3648)).save(tmp_path / "large.png", compress_level=1)
    for name in ("turned.png", "large.png"):
        opened.evaluate("() => { window.ticks = 0; setInterval(() => window.ticks++, 1); }")
        opened.set_input_files("#photo", tmp_path / name)
        opened.wait_for_selector("#crop[open]")
        assert name == "turned.png" or opened.evaluate("window.ticks") > 10
        opened.click("#crop-use")
        until(opened, f"document.querySelector('#image').ariaLabel.startsWith('{name}')")
        expected = to_pixels(open_image(tmp_path / name), SIZE, 3)
        seen = np.array(canvas(opened, "#image")).reshape(SIZE, SIZE, 4)[..., :3].transpose(2, 0, 1)
        assert np.abs(seen - expected.numpy().astype(int)).max() <= 1
        (name, share), *_ = checkpoint.predict(tmp_path / name)
        assert opened.inner_text("#verdict").startswith(name[:50])
        assert float(re.search(r", ([\d.]+) %\.", opened.inner_text("#verdict"))[1]) == pytest.approx(
            100 * share, abs=0.2
        )


@pytest.mark.slow
def test_a_dropped_photo_is_offered_first(opened, explorer):
    _, checkpoint, pictures = explorer
    data = base64.b64encode(pictures[1].read_bytes()).decode()
    files = opened.evaluate_handle(
        "data => { const files = new DataTransfer(); const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));"
        "files.items.add(new File([bytes], 'dropped.png', { type: 'image/png' })); return files; }",
        data,
    )
    opened.dispatch_event("body", "drop", {"dataTransfer": files})
    opened.wait_for_selector("#crop[open]")
    assert opened.locator(".thumb").count() == 10  # not used yet
    opened.click("#crop-use")
    until(opened, "document.querySelector('#image').ariaLabel.startsWith('dropped.png')")
    ((name, share),) = checkpoint.predict(pictures[1], top=1)
    assert opened.inner_text("#verdict").startswith(f"{name}, {100 * share:.0f}"[:40])


@pytest.mark.slow
def test_a_digit_is_drawn_and_read(browser, digits_run, tmp_path):
    if not runtime_archive().is_file():
        pytest.skip(f"no {runtime_archive()}: python visualize.py explorer downloads it")
    model = digits_run[0] / "model/vit-layer4-8-digits"
    done = run("visualize.py", "explorer", "--model_path", model, "--images", 3, "--output_path", tmp_path / "d.html")
    assert done.returncode == 0, done.stderr
    tab, wrong = open_page(browser, (tmp_path / "d.html").as_uri(), has_touch=True)
    assert tab.evaluate("vit.ready") is True and tab.locator(".thumb").count() == 3
    tab.click("#draw-start")
    box = tab.locator("#pad").bounding_box()
    for i, (x, y) in enumerate([(0.3, 0.2), (0.7, 0.2), (0.5, 0.9)]):  # a seven
        tab.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=5)
        if i == 0:
            tab.mouse.down()
    tab.mouse.up()
    tab.click("#draw-use")
    until(tab, "document.querySelector('#image').ariaLabel.startsWith('your drawing')")
    seen = np.array(canvas(tab, "#image"), dtype=np.uint8).reshape(8, 8, 4)[..., 0]
    assert seen[:2].max() > 200 and seen[-2:].max() > 200  # it fills the image
    checkpoint = load_checkpoint(model)
    expected = reference(checkpoint, torch.tensor(seen)[None, None]).softmax(-1)[0]
    assert float(re.search(r", ([\d.]+) %", tab.inner_text("#verdict"))[1]) == pytest.approx(
        100 * expected.max().item(), abs=0.1
    )
    stage = tab.locator("#stage").bounding_box()
    tab.touchscreen.tap(stage["x"] + 5, stage["y"] + 5)  # looks, and hides nothing
    until(tab, "document.querySelector('#sentence').textContent.includes('row 1, column 1 looks')")
    assert tab.is_disabled("#restore")
    tab.tap("#hide")
    until(tab, "document.querySelector('#verdict').textContent.includes('1 of 16')")
    assert not wrong
    tab.close()


@pytest.mark.slow
def test_a_broken_image_gets_a_sentence(opened, tmp_path):
    (tmp_path / "<i>broken.png").write_bytes(b"no image at all")
    opened.set_input_files("#photo", tmp_path / "<i>broken.png")
    until(opened, "document.querySelector('#status').textContent.includes('cannot be read')")
    assert "<i>broken.png" in opened.inner_text("#status")


@pytest.mark.slow
def test_names_stay_text(opened, explorer):
    assert opened.evaluate("window.evil") is None and opened.locator("main script, main img, main i").count() == 0
    names = opened.locator("#bars .name").all_inner_texts()
    assert {name.removesuffix(" ✓") for name in names} >= set(EVIL)
    assert any(
        "<img src=x" in text for text in opened.eval_on_selector_all(".thumb", "all => all.map(one => one.title)")
    )
    assert "<b>m" in opened.title()


@pytest.mark.slow
def test_the_tour_moves_the_page_and_ends(opened):
    opened.click("#tour-start")
    titles = []
    for _ in range(7):
        titles.append(opened.inner_text("#tour-title"))
        assert opened.locator("section.lit").count() == 1
        opened.click("#tour-next")
    assert len(set(titles)) == 7 and titles[-1] == "What attention is not"
    assert not opened.is_visible("#tour") and opened.locator("section.lit").count() == 0


@pytest.mark.slow
def test_everything_has_a_name_and_fits_a_phone(browser, explorer):
    for scheme in ("light", "dark"):
        options = dict(viewport={"width": 360, "height": 740}, color_scheme=scheme)
        tab, wrong = open_page(browser, explorer[0].as_uri(), **options)
        assert tab.evaluate("vit.ready") is True and not wrong
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        unnamed = tab.eval_on_selector_all(
            "button, [role=img], input",
            "all => all.filter(one => !(one.ariaLabel || one.textContent.trim() || one.labels?.length)).map(x => x.id)",
        )
        assert not unnamed
        tab.close()


@pytest.mark.slow
def test_it_works_from_a_server_and_without_webassembly(browser, explorer):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(explorer[0].parent))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/page.html"
    tab, wrong = open_page(browser, address)
    assert tab.evaluate("vit.ready") is True and not wrong
    tab.close()
    server.shutdown()
    tab = browser.new_page()
    tab.add_init_script("delete window.WebAssembly")
    tab.goto(explorer[0].as_uri())
    until(tab, "!!window.vit")
    assert tab.evaluate("vit.ready") is False
    assert "cannot run in this browser" in tab.inner_text("#status") and not tab.is_visible("#photo-label")
    before = canvas(tab, "#maps canvas >> nth=0")
    tab.evaluate("vit.show(3)")
    tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert canvas(tab, "#maps canvas >> nth=0") != before
    tab.click("#play-insertion")  # its curves were computed beforehand
    until(tab, "document.querySelector('#belief-verdict').textContent.includes('mean of 5 random orders')")
    tab.click("#film button >> nth=0")
    until(tab, "document.querySelector('#play-insertion').disabled")
    assert "need the model" in tab.inner_text("#belief-source")
    tab.close()
