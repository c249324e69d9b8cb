"""What tests of sessions share: an engine, and a server of the far stack that takes turns with it."""

from __future__ import annotations

from xdpstack.tests.test_stream_hooks import wait

__all__ = ["Speaking"]


class Speaking:
    """``live``, the engine; ``server``, which has ``turn()``; the ``connection`` between them."""

    protocol = ""

    def until(self, condition):
        def so():
            self.server.turn()
            return condition()

        self.live.until(so)

    def ask(self, what, *words, **more):
        return self.live.answer(getattr(self.live.commander, what)(*words, **more))

    def write(self, data, **flags):
        return self.ask("write", self.connection, data, **flags)[0]

    def left(self):
        """The connection ended, whatever was said."""
        self.until(lambda: self.live.told(self.connection) & {"closed", "reset"})

    def counted(self, protocol=""):
        return self.live.engine.publication.stats()["sessions"][protocol or self.protocol]

    def ended(self, protocol="", begun=1):
        """Counters, once as many sessions have begun and all are gone; they add up."""
        wait(lambda: self.counted(protocol)["begun"] >= begun and not self.counted(protocol)["live"])
        stats = self.counted(protocol)
        assert stats["begun"] == begun
        assert stats["received"] == stats["delivered"] + sum(stats["reasons"].values())
        assert stats["begun"] == stats["closed"] + stats["failed"] + stats["cut"]
        return stats
