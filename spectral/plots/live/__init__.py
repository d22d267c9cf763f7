"""The same page while the run goes on, served on this machine."""

from spectral.plots.live.server import make_app, serve
from spectral.plots.live.sockets import listen
from spectral.plots.live.watch import RunWatch

__all__ = ["RunWatch", "listen", "make_app", "serve"]
