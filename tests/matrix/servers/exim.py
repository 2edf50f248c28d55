"""Exim: three daemons, of which two expect a PROXY header, as our how-to has it."""

from tests.docs import marked
from tests.matrix.boxed import Boxed, start_or_stop
from tests.matrix.server import (
    DOMAIN,
    HOST_NAME,
    SOURCE,
    TRUSTED,
    V1,
    V2,
    Home,
    Kind,
)

PLAIN = """\
daemon_smtp_ports = 2500
local_interfaces  = <; 127.0.0.1 ; ::1
"""
MAIN = """\
{service}
primary_hostname = {host}
domainlist local_domains = {domain}
hostlist relay_from_hosts = <; {trusted}
log_file_path = syslog
syslog_duplication = false
log_selector = +incoming_port
spool_directory = /var/spool/exim4
exim_user = Debian-exim
exim_group = Debian-exim
never_users = root
host_lookup =
keep_environment =
rfc1413_hosts =
tls_advertise_hosts = *
tls_certificate = /etc/mail.crt
tls_privatekey = /etc/exim.key
acl_smtp_rcpt = rcpt
begin acl
rcpt:
  accept hosts = +relay_from_hosts
  require message = relay not permitted
          domains = +local_domains
  accept
begin routers
local:
  driver = accept
  domains = +local_domains
  transport = box
others:
  driver = redirect
  data = :blackhole:
begin transports
box:
  driver = appendfile
  directory = /shared/mail
  create_directory
  maildir_format
  user = Debian-exim
"""


class Exim(Boxed):
    """The running Exim."""

    def __init__(self, home: Home) -> None:
        """Start the daemons."""
        super().__init__(home, ["exim4-daemon-heavy"], {"Debian-exim": 950})
        self.backends = {
            V1: ["127.0.0.1:10725"],
            V2: ["127.0.0.1:10725"],
            SOURCE: ["127.0.0.1:2500", "[::1]:2500"],
        }
        self.unprepared = ["127.0.0.1:2500"]
        start_or_stop(self, self._start)

    def _start(self) -> None:
        script = """
        install -d -o Debian-exim -g Debian-exim /var/spool/exim4 /shared/mail
        install -m 600 -o Debian-exim /etc/mail.key /etc/exim.key
        chmod u+s /usr/sbin/exim4
        """
        self.box.run("sh", "-ec", script)
        services = {"plain": PLAIN, "proxied": marked("exim: PROXY header")}
        names = [f"/etc/exim4/{name}.conf" for name in services]
        self.box.write("/etc/exim4/trusted_configs", "\n".join(names) + "\n")
        for path, service in zip(names, services.values(), strict=True):
            text = MAIN.format(
                service=service,
                host=HOST_NAME,
                domain=DOMAIN,
                trusted=" ; ".join(TRUSTED),
            )
            self.box.write(path, text)
            self.start("exim", "/usr/sbin/exim4", "-C", path, "-bdf", "-q1h")
            port = "2500" if service == PLAIN else "10725"
            self.log.wait_for(rf"listening for SMTP on .*{port}")


ADVICE = "with Exim, set hosts_proxy to proxyshim's address"
EXIM = Kind(
    "exim",
    [V1, V2, SOURCE],
    Exim,
    in_log=r"<= .* H=.*\[{address}\]:{port}",
    in_log6=r"<= .* H=.*\[{address}\]:{port}",
    received=r"\[{address}\]",
    received6=r"\[{address}\]",
    advice={V1: ADVICE, V2: ADVICE, "xclient": ADVICE},
)
