"""A small process with three capabilities opens ports for workers that have none.

``xdpstack opener POLICY.toml`` keeps CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF, and nothing else. A worker of
any user asks it over a Unix socket for queues of an interface; the policy says what its user may have. What
the worker receives: a bound AF_XDP socket a queue, the memory of their frames, and the filter's counters
to read. What it does not: a map or a program that it could change, a rule, another queue.

``policy`` the file · ``wire`` the messages · ``leases`` what was given, across restarts · ``server`` the
process · ``client`` the worker's side.
"""
