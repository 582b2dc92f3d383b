"""The page for people: what robots ask and are told, live, and a simulator to try the policy in.

    GET  /                      the page; it and its two files hold nothing that needs a token
    GET  /page/info             what is served, and the limits of its actions
    GET  /page/events           lines of JSON, for as long as somebody reads them
    POST /page/demo/scene       {"seed": 7}                   another table; ends what runs
    POST /page/demo/go          {"instruction": "..."}        the policy drives the simulator
    POST /page/demo/stop        {}

Robots pay nothing for it: the server keeps one newest request of each, readers look at those a few
times a second, and pictures become files in a thread, once for all readers.
"""

from vla_jax.serving.page.routes import OPEN_PATHS, document, mount

__all__ = ["OPEN_PATHS", "document", "mount"]
