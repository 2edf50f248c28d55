"""The size of a run: a full one, or one that only shows that everything works."""

from dataclasses import dataclass

from bench.programs import Load


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a run."""

    rounds: int
    sessions: int  # in a round, of one message each
    bodies: int  # in a round, sessions with a message of 10 MB
    held: tuple[int, ...]  # numbers of idle sessions whose memory is measured
    open_besides: tuple[int, ...]  # numbers of idle sessions while others work
    entries: tuple[int, ...]  # sizes of the allowlist

    def rows(self) -> dict[str, Load]:
        """Return the loads of each round, by their names in the table."""
        many = self.sessions
        return {
            "one message, v2": Load(many),
            "one message, v1": Load(many, header="v1"),
            "one message, PIPELINING": Load(many, pipelining=True),
            "ten messages": Load(many // 5, messages=10),
            "connect and quit": Load(many, messages=0),
        }

    def compared(self) -> dict[str, Load]:
        """Return the loads that compare the other conveyances."""
        rows = self.rows()
        names = ("one message, v2", "ten messages", "connect and quit")
        return {name: rows[name] for name in names}

    def idle(self) -> dict[str, Load]:
        """Return the loads of idle sessions."""
        loads = {f"{n} after RCPT": Load(n, hold="rcpt") for n in self.held}
        first = self.held[0]
        return {**loads, f"{first} after EHLO": Load(first, hold="ehlo")}

    def idle_compared(self) -> dict[str, Load]:
        """Return the idle sessions that compare another conveyance."""
        name, load = next(iter(self.idle().items()))
        return {name: load}

    def body(self) -> Load:
        """Return the sessions with big messages."""
        return Load(self.bodies, at_once=4, octets=10_000_000)

    def greetings(self) -> dict[int, Load]:
        """Return the loads that measure the time to the greeting, by sessions at once."""
        many = self.sessions
        return {
            1: Load(many // 4, at_once=1, messages=0),
            20: Load(many, at_once=20, messages=0),
            200: Load(many, at_once=200, messages=0),
        }


FULL = Plan(
    rounds=5,
    sessions=1_500,
    bodies=30,
    held=(1_500, 9_000),
    open_besides=(10, 1_000, 5_000),
    entries=(10, 1_000, 100_000),
)
QUICK = Plan(
    rounds=2,
    sessions=400,
    bodies=8,
    held=(500,),
    open_besides=(10, 500),
    entries=(10, 1_000),
)
