"""Run `orchestrate explore`: serve, on this machine only, a page with a slider for each direction of a set."""

import html
import os
import secrets
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from core.chain.step import INJECTIONS
from core.errors import UserError
from core.pictures.images import SUFFIXES
from orchestrator.edit.explore_state import STEP, ExploreState, Slider, sliders_of
from orchestrator.edit.request import ModelOptions, Window, check_bundle
from orchestrator.edit.session import Edit, EditSession
from orchestrator.edit.settings import MAX_SEED
from orchestrator.pages.port import HOST, check_port
from orchestrator.trial.loading import LESS, advice_on_memory

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
try:
    import gradio as gr
except ImportError:
    raise UserError("the page needs gradio: pip install 'h-space-orchestrator[explore]'") from None

_SEEDS = 1_000_000  # random seeds are below this: short enough to read out
_KEPT_S = 600  # seconds that files which the page has shown are kept
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_MONO = ["ui-monospace", "Consolas", "monospace"]
_CSS = """
.gradio-container {
    width: 100% !important; max-width: 1200px !important; margin: 0 auto !important; overflow: visible !important;
}
.heading h1 { margin: 0; overflow-wrap: anywhere; }
.heading p { margin: 0.25em 0 0; overflow-wrap: anywhere; }
.seen { align-self: flex-start; background: var(--body-background-fill); padding: 8px 0; }
@media (min-height: 700px) { .seen { position: sticky; top: 0; z-index: 100; } }
.picture label.float { position: static; border: 0; background: none; padding: 4px 8px; }
.picture label.float > span, .picture .icon-button-wrapper { display: none; }
.picture .image-frame, .picture .image-container > button { width: 100%; }
.picture img { width: 100% !important; height: auto !important; max-height: 60vh; object-fit: contain; }
.pixelated img { image-rendering: pixelated; }
#notes p { margin: 0; overflow-wrap: anywhere; }
#notes .problem { color: var(--error-text-color); }
"""
_SMALL = 64  # pixels of the longer side; up to this size every pixel is shown as a square


def serve(
    bundle: Path,
    port: int,
    browser: bool,
    console: Console,
    options: ModelOptions = ModelOptions(),
) -> int:
    """Serve the page until it is interrupted. Raises UserError for a set that cannot be opened, or a taken port."""
    check_port(port)
    check_bundle(bundle)
    with advice_on_memory(*LESS):
        session = EditSession.open(bundle, options)
    for warning in session.warnings:
        console.print(f"Note: {warning}.", soft_wrap=True, highlight=False)
    if _small(session):
        torch.set_num_threads(1)  # for one small image at a time, threads would wait longer than they work
    with tempfile.TemporaryDirectory(prefix="explore-") as temporary:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(temporary) / "served")
        _spare_proxies()
        blocks = page(ExploreState(session, Path(temporary) / "drawn"))
        try:
            _launch(blocks, port, browser)
        except OSError:
            raise UserError(f"--port: {port} is taken; choose another one") from None
        console.print(f"Explore: http://{HOST}:{port}   (Ctrl-C ends it)", highlight=False)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM acts like Ctrl-C
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
        finally:
            blocks.close(verbose=False)
    return 0


def _spare_proxies() -> None:
    """Exclude this machine from proxies: gradio calls its own server at the start, which a proxy cannot reach."""
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), HOST]))


def _launch(blocks: "gr.Blocks", port: int, browser: bool) -> None:
    blocks.launch(
        server_name=HOST,
        server_port=port,
        inbrowser=browser,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        max_file_size="64mb",
        theme=_theme(),
        css=_CSS,
    )


def _theme() -> "gr.themes.Base":
    """Return a theme with the system's fonts, which need no download, and with enough contrast for small text."""
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=_FONTS, font_mono=_MONO)
    return theme.set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        error_text_color="#b91c1c",
        error_text_color_dark="#fca5a5",
    )


def page(state: ExploreState) -> "gr.Blocks":
    """Return the page of one opened set."""
    session = state.session
    first, folded = sliders_of(session)
    kept = (_KEPT_S, _KEPT_S)  # seconds between two clean-ups, and the age of files that they remove
    title = f"explore {session.name}"
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True, delete_cache=kept) as blocks, gr.Row():
        with gr.Column(scale=3, min_width=320, elem_classes="seen"):
            gr.HTML(_heading(session), elem_classes="heading")
            plain, edited, difference = _pictures(session)
            notes = gr.HTML(elem_id="notes")
            with gr.Row():
                picture = gr.DownloadButton("Download the image", size="sm", min_width=120)
                settings = gr.DownloadButton("Download the settings", size="sm", min_width=120)
        with gr.Column(scale=2, min_width=320):
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
            with gr.Row():
                random = gr.Button("Random seed", size="sm", min_width=120)
                reset = gr.Button("Reset the sliders", size="sm", min_width=120)
            own = _own(session)
            sliders = [_slider(dial) for dial in first]
            if folded:
                with gr.Accordion(f"{len(folded)} more directions", open=False):
                    sliders += [_slider(dial) for dial in folded]
            injection, high, low = _chain(session)
        names = [dial.name for dial in (*first, *folded)]
        outputs = [plain, edited, difference, picture, settings, notes]
        inputs = [seed, own, injection, high, low, *sliders]

        def draw(*values: Any) -> list[Any]:
            return _drawn(state, names, *values)

        # A slider may move while a picture is drawn: its last value is drawn next, and no value in between.
        gr.on(
            [blocks.load, *(each.change for each in inputs)],
            draw,
            inputs,
            outputs,
            show_progress="minimal",
            show_progress_on=[edited],
            trigger_mode="always_last",
            concurrency_limit=1,
            api_visibility="private",
        )
        random.click(lambda: (secrets.randbelow(_SEEDS), None), None, [seed, own], api_visibility="private")
        reset.click(lambda: [0.0] * len(sliders), None, sliders, api_visibility="private")
    return blocks


def _heading(session: EditSession) -> str:
    said = html.escape(
        f"{len(session.directions)} directions of {session.denoiser.name}, {len(session.schedule)} steps"
    )
    notes = "".join(f"<p>{html.escape(warning)}.</p>" for warning in session.warnings)
    return f"<h1>{html.escape(session.name)}</h1><p>{said}</p>{notes}"


def _small(session: EditSession) -> bool:
    return max(session.denoiser.image_shape[1:]) <= _SMALL


def _pictures(session: EditSession) -> list["gr.Image"]:
    classes = ["picture", "pixelated"] if _small(session) else ["picture"]
    labels = ("Original", "Edited", "Difference")
    with gr.Row():
        return [
            gr.Image(
                label=label,
                alt_text=label,
                type="filepath",
                format="png",
                interactive=False,
                buttons=[],
                min_width=80,
                elem_classes=classes,
                elem_id=label.lower(),
            )
            for label in labels
        ]


def _own(session: EditSession) -> "gr.File":
    """Return the field for an own image, hidden where the chain is noisy, because no image can be inverted then."""
    with gr.Accordion("Your own image, instead of the seed", open=False, visible=not session.schedule.stochastic):
        return gr.File(
            label="Image",
            show_label=False,
            file_types=list(SUFFIXES),
            type="filepath",
            height=140,
            elem_id="own",
        )


def _slider(dial: Slider) -> "gr.Slider":
    return gr.Slider(dial.low, dial.high, 0.0, step=STEP, label=dial.name, info=dial.about or None, buttons=[])


def _chain(session: EditSession) -> tuple["gr.Radio", "gr.Dropdown", "gr.Dropdown"]:
    steps = list(session.schedule.timesteps)
    high, low = session.window or (steps[0], steps[-1])
    inside = [t for t in steps if low <= t <= high] or steps
    with gr.Accordion("How it is edited", open=False):
        injection = gr.Radio(list(INJECTIONS), value=session.injection, label="Injection")
        with gr.Row():
            from_ = gr.Dropdown(steps, value=inside[0], label="Edited from timestep", min_width=120)
            to = gr.Dropdown(steps, value=inside[-1], label="down to timestep", min_width=120)
    return injection, from_, to


def _drawn(state: ExploreState, names: list[str], *inputs: Any) -> list[Any]:
    """Return the values of the page's outputs; for a mistake its sentence, with the pictures left as they are.

    inputs: the values of the seed, the image, the injection, the two timesteps and a slider for each name.
    """
    seed, own, injection, high, low, *scales = inputs
    try:
        edit = Edit(dict(zip(names, scales, strict=True)), injection, _window(state.session, high, low))
        with advice_on_memory(*LESS):
            pictures = state.show(Path(own) if own else _seed(seed), edit)
    except UserError as error:
        said = str(error).replace(f"{Path(own).parent}/", "") if own else str(error)  # the folder of gradio's copy
        return [*[gr.skip()] * 5, f'<p class="problem" role="alert">{html.escape(said)}</p>']
    files = (pictures.plain, pictures.edited, pictures.difference, pictures.edited, pictures.settings)
    said = "".join(f"<p>{html.escape(note)}.</p>" for note in pictures.notes)
    return [*map(str, files), f'<div role="status">{said}</div>']


def _seed(seed: Any) -> int:
    if seed is None or not 0 <= seed <= MAX_SEED:
        raise UserError(f"the seed is {seed}; allowed: an integer of 0 or more")
    return int(seed)


def _window(session: EditSession, high: int, low: int) -> Window | None:
    """Return the window, or None where it is the whole chain."""
    whole = (session.schedule.timesteps[0], session.schedule.timesteps[-1])
    return None if (high, low) == whole else (high, low)
