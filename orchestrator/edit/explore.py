"""`orchestrate explore`: a page of this machine alone, with a slider for each direction of a set."""

import html
import os
import secrets
import signal
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from core.chain.step import INJECTIONS
from core.errors import UserError
from core.pictures.images import SUFFIXES
from orchestrator.edit.explore_state import STEP, ExploreState, Slider, dialled
from orchestrator.edit.session import Edit, EditSession, ModelOptions, Window
from orchestrator.edit.settings import MAX_SEED
from orchestrator.trial.loading import LESS, told_of_memory

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
try:
    import gradio as gr
except ImportError:
    raise UserError("the page needs gradio: pip install 'h-space-orchestrator[explore]'") from None

_HOST = "127.0.0.1"
_SEEDS = 1_000_000  # that a random one is taken from: short enough to be read out
_KEPT_S = 600  # files that the page has shown
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_MONO = ["ui-monospace", "Consolas", "monospace"]
_CSS = """
.gradio-container {
    width: 100% !important; max-width: 1200px !important; margin: 0 auto !important; overflow: visible !important;
}
.heading h1 { margin: 0; overflow-wrap: anywhere; }
.heading p { margin: 0.25em 0 0; }
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
_SMALL = 64  # pixels, of the longer side; up to here every pixel is shown as a square


def serve(
    bundle: Path,
    port: int,
    browser: bool,
    console: Console,
    options: ModelOptions = ModelOptions(),
) -> int:
    """Serve the page until it is interrupted. Raises UserError for what cannot be opened, and a port that is taken."""
    _check_port(port)
    with told_of_memory(*LESS):
        session = EditSession.open(bundle, options)
    for warning in session.warnings:
        console.print(f"Note: {warning}.", soft_wrap=True, highlight=False)
    if _small(session):
        torch.set_num_threads(1)  # of one small image at a time, threads wait for each other longer than they work
    with tempfile.TemporaryDirectory(prefix="explore-") as temporary:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(temporary) / "served")
        _spare_proxies()
        made = page(ExploreState(session, Path(temporary) / "drawn"))
        try:
            _launch(made, port, browser)
        except OSError:
            raise UserError(f"--port: {port} is taken; choose another one") from None
        console.print(f"Explore: http://{_HOST}:{port}   (Ctrl-C ends it)", highlight=False)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # to be ended is to be interrupted
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
        finally:
            made.close(verbose=False)
    return 0


def _check_port(port: int) -> None:
    """Before a model is loaded for nothing."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port: got {port}; allowed: 1 to 65535")
    with socket.socket() as probe:
        if probe.connect_ex((_HOST, port)) == 0:
            raise UserError(f"--port: {port} is taken; choose another one")


def _spare_proxies() -> None:
    """gradio asks its own server whether it is there; a proxy would not find it."""
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), _HOST]))


def _launch(made: "gr.Blocks", port: int, browser: bool) -> None:
    made.launch(
        server_name=_HOST,
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
    """The fonts of the system, which are fetched from nowhere, and small print that can be read."""
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
    """The page of one opened set."""
    session = state.session
    first, folded = dialled(session)
    kept = (_KEPT_S, _KEPT_S)  # how often is looked, and how old files are that go
    title = f"explore {session.name}"
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True, delete_cache=kept) as made, gr.Row():
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
        shown = [plain, edited, difference, picture, settings, notes]
        inputs = [seed, own, injection, high, low, *sliders]

        def draw(*given: Any) -> list[Any]:
            return _drawn(state, names, *given)

        # While one picture is drawn, a slider may move on: what it has come to by then is drawn next, nothing between.
        gr.on(
            [made.load, *(each.change for each in inputs)],
            draw,
            inputs,
            shown,
            show_progress="minimal",
            show_progress_on=[edited],
            trigger_mode="always_last",
            concurrency_limit=1,
            api_visibility="private",
        )
        random.click(lambda: (secrets.randbelow(_SEEDS), None), None, [seed, own], api_visibility="private")
        reset.click(lambda: [0.0] * len(sliders), None, sliders, api_visibility="private")
    return made


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
    """Hidden where the chain is noisy: no image can be inverted then."""
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


def _drawn(
    state: ExploreState,
    names: list[str],
    seed: Any,
    own: str | None,
    injection: Any,
    high: Any,
    low: Any,
    *scales: float,
) -> list[Any]:
    """What the page shows; of a mistake, its sentence beside the pictures that were there."""
    try:
        edit = Edit(dict(zip(names, scales, strict=True)), injection, _window(state.session, high, low))
        with told_of_memory(*LESS):
            shown = state.show(Path(own) if own else _seed(seed), edit)
    except UserError as error:
        said = (
            str(error).replace(f"{Path(own).parent}/", "") if own else str(error)
        )  # where gradio keeps what it is given
        return [*[gr.skip()] * 5, f'<p class="problem" role="alert">{html.escape(said)}</p>']
    files = (shown.plain, shown.edited, shown.difference, shown.edited, shown.settings)
    said = "".join(f"<p>{html.escape(note)}.</p>" for note in shown.notes)
    return [*map(str, files), f'<div role="status">{said}</div>']


def _seed(seed: Any) -> int:
    if seed is None or not 0 <= seed <= MAX_SEED:
        raise UserError(f"the seed is {seed}; allowed: an integer of 0 or more")
    return int(seed)


def _window(session: EditSession, high: int, low: int) -> Window | None:
    """None where it is the whole chain."""
    whole = (session.schedule.timesteps[0], session.schedule.timesteps[-1])
    return None if (high, low) == whole else (high, low)
