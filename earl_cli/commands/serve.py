"""``earl serve``: a model behind an HTTP endpoint of OpenAI's image-edit protocol, with a web page."""

from __future__ import annotations

import os
import threading
import webbrowser
from collections.abc import Mapping
from typing import Annotated

import typer

from earl_cli.commands._options import EngineArgOption, EngineOption, sampling_options, without_collector
from earl_cli.console import console
from earl_cli.errors import UsageError

MIB = 1 << 20


@sampling_options
def serve(
    *,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="PATH|HUB_ID[@REV]", help="The model. The small one that ships with earl by default."
        ),
    ] = None,
    sampling: Mapping[str, float],
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    engine: EngineOption = "auto",
    engine_arg: EngineArgOption = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on: 127.0.0.1 is this machine only, 0.0.0.0 every network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8360,
    api_key_variable: Annotated[
        str | None, typer.Option("--api-key-variable", help="Require the API key in this environment variable.")
    ] = None,
    public_address: Annotated[
        str | None,
        typer.Option("--public-url", metavar="URL", help="Public URL behind a proxy: https://host/prefix."),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option("--trusted-proxy", metavar="ADDRESS", help="Trust the X-Forwarded-For of this proxy; repeatable."),
    ] = None,
    max_queue: Annotated[int, typer.Option("--max-queue", min=1, help="Most edits in the queue.")] = 32,
    max_variants: Annotated[int, typer.Option("--max-variants", min=1, help="Most variants of one request.")] = 8,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=1, help="Refuse images with more pixels.")
    ] = 50_000_000,
    max_upload: Annotated[int, typer.Option("--max-upload", min=1, help="Refuse larger files, in MiB.")] = 32,
    rate: Annotated[int, typer.Option("--rate", min=0, help="Most edits a minute from one address; 0: no limit.")] = 60,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Serve a page for editing photos, and the OpenAI protocol's image edits: earl serve

    The page is at http://127.0.0.1:8360/, the endpoint at http://127.0.0.1:8360/v1. Ctrl-C stops it.
    """
    from earl_cli.generation.vllm.environment import parse_engine_arguments

    key, engine_args = _key(api_key_variable), parse_engine_arguments(engine_arg or [])

    from earl_cli.serving.connections import Server
    from earl_cli.serving.limits import ServerLimits
    from earl_cli.serving.site import Site, is_loopback, public_url, trusted_proxies

    public = None if public_address is None else public_url(public_address)
    proxies = trusted_proxies(trusted_proxy or [])

    requests = max(ServerLimits.requests, 2 * max_queue)
    limits = ServerLimits(
        max_queue=max_queue,
        max_variants=max_variants,
        max_pixels=max_pixels,
        rate=rate,
        upload=max_upload * MIB,
        uploads=max(8 * max_upload * MIB, ServerLimits.uploads),
        requests=requests,
        share=requests * 3 // 4,
        connections=requests + ServerLimits.connections - ServerLimits.requests,
    )
    server = Server(host, port, limits.connections)  # fails on a port in use before the model is loaded

    with without_collector():
        from earl_cli.generation.editor import load_editor
        from earl_cli.serving.app import serve as answer
        from earl_cli.serving.service import service_of

        editor = load_editor(model, device=device, sampling=sampling, engine=engine, engine_args=engine_args)
    console.note(f"{editor.model.name}: {editor.model.plan}")
    service = service_of(editor, limits, key, Site(is_loopback(server.host), public, proxies))
    page = server.page_address if public is None else str(public)
    if key is None and (public is not None or not service.site.is_local):
        reached = server.host if public is None else page
        console.warn(f"everybody who can reach {reached} can edit: no key is required. --api-key-variable requires one")
    if public is not None and not proxies:
        console.warn(
            "all clients behind a proxy count as one address (--rate, wrong keys): "
            "--trusted-proxy ADDRESS trusts the addresses that it forwards"
        )

    def ready() -> None:
        console.say(f"page      {page}")
        console.say(f"endpoint  {page}v1")
        if public is not None:
            console.note(f"the proxy finds it at {server.page_address}")
        console.note("Ctrl-C stops it")
        console.document(
            {
                "page": page,
                "address": server.page_address,
                "api_base": f"{page}v1",
                "model": service.about.model,
                "engine": service.about.engine,
                "device": service.about.device,
            }
        )
        if show:
            threading.Thread(target=webbrowser.open, args=(server.page_address,), daemon=True).start()

    answer(server, service, ready)


def _key(variable: str | None) -> str | None:
    key = os.environ.get(variable, "").strip() if variable else None
    if key == "":
        raise UsageError("this environment variable holds no key", where=variable, hint=f"export {variable}=...")
    if key is not None and not (key.isascii() and key.isprintable()):
        hint = "use ASCII letters, digits and punctuation, as HTTP headers carry nothing else"
        raise UsageError("this key can't be sent by clients", where=variable, hint=hint)
    return key
