"""The page at /tuco: static files that talk to the HTTP API of the server they come from.

The page is open, it holds no secret: behind ``--api-key`` it asks for the key, then sends it with its calls.
Its policy lets nothing in but its own files, so that what a model writes can never become more than text.
"""

from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse

router = APIRouter()

HERE = Path(__file__).parent

ASSETS = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "page_alphas.js": "text/javascript",
    "page_api.js": "text/javascript",
    "page_chart.js": "text/javascript",
    "page_column.js": "text/javascript",
}
"""What lies under /tuco/, and its type: a name that is not here is not served."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    # The browser itself refuses innerHTML and its kin.
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # after an upgrade, page and scripts are of one version
}


@router.api_route("/tuco", methods=["GET", "HEAD"], include_in_schema=False)
async def page() -> FileResponse:
    """The page itself. Its links are relative, so it works below a ``--root-path`` too."""
    return FileResponse(HERE / "page.html", media_type="text/html", headers=HEADERS)


@router.api_route("/tuco/{name}", methods=["GET", "HEAD"], include_in_schema=False)
async def asset(name: str) -> FileResponse:
    """One of ``ASSETS``; 404 for any other name."""
    if name not in ASSETS:
        raise HTTPException(404)
    return FileResponse(HERE / name, media_type=ASSETS[name], headers=HEADERS)
