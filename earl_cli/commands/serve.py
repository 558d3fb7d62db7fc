"""``earl serve``: the model behind an HTTP endpoint in the OpenAI protocol's shape, and a page to use it from."""

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
        typer.Option("--model", metavar="PATH|HUB_ID[@REV]", help="The small model that ships with earl by default."),
    ] = None,
    sampling: Mapping[str, float],
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    engine: EngineOption = "auto",
    engine_arg: EngineArgOption = None,
    host: Annotated[
        str, typer.Option("--host", help="Who may ask: 127.0.0.1 is this machine only, 0.0.0.0 is everybody.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Where it listens; 0 is any free one.")] = 8360,
    api_key_variable: Annotated[
        str | None, typer.Option("--api-key-variable", help="Ask for the key in this environment variable.")
    ] = None,
    public_address: Annotated[
        str | None,
        typer.Option("--public-url", metavar="URL", help="Where people find it behind a proxy: https://host/prefix."),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option("--trusted-proxy", metavar="ADDRESS", help="Believe this proxy's X-Forwarded-For; repeatable."),
    ] = None,
    max_queue: Annotated[int, typer.Option("--max-queue", min=1, help="How many edits may wait.")] = 32,
    max_variants: Annotated[int, typer.Option("--max-variants", min=1, help="How many variants at a time.")] = 8,
    max_pixels: Annotated[int, typer.Option("--max-pixels", min=1, help="Refuse larger pictures.")] = 50_000_000,
    max_upload: Annotated[int, typer.Option("--max-upload", min=1, help="Refuse larger files; in MiB.")] = 32,
    rate: Annotated[
        int, typer.Option("--rate", min=0, help="Edits a minute that one address may ask for; 0 is any number.")
    ] = 60,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Serve a page for editing photos, and the OpenAI protocol's image edits: earl serve

    The page is at http://127.0.0.1:8360/, the endpoint at http://127.0.0.1:8360/v1. Ctrl-C stops it.
    """
    from earl_cli.generation.vllm.environment import engine_arguments

    key, engine_args = _key(api_key_variable), engine_arguments(engine_arg or [])

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
    server = Server(host, port, limits.connections)  # a port that is taken is known before the model is loaded

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
        console.warn(f"all who reach {reached} can edit here: there is no password. --api-key-variable asks for one")
    if public is not None and not proxies:
        console.warn(
            "all who come through a proxy count as one address (--rate, wrong keys): "
            "--trusted-proxy ADDRESS believes what that proxy says of them"
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
        raise UsageError("this environment variable has no key", where=variable, hint=f"export {variable}=...")
    if key is not None and not (key.isascii() and key.isprintable()):
        hint = "a key of ASCII letters, digits and signs; an HTTP header carries no others"
        raise UsageError("this key can't be sent by clients", where=variable, hint=hint)
    return key
