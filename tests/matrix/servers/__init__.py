"""The mail servers, one module for each."""

from collections.abc import Sequence

from tests.matrix.server import Kind
from tests.matrix.servers.aiosmtpd import AIOSMTPD
from tests.matrix.servers.courier import COURIER
from tests.matrix.servers.dovecot import DOVECOT
from tests.matrix.servers.exim import EXIM
from tests.matrix.servers.haraka import HARAKA
from tests.matrix.servers.opensmtpd import OPENSMTPD
from tests.matrix.servers.postfix import POSTFIX
from tests.matrix.servers.qpsmtpd import QPSMTPD
from tests.matrix.servers.sendmail import SENDMAIL
from tests.matrix.servers.smtp_server import SMTP_SERVER

KINDS: Sequence[Kind] = (
    POSTFIX,
    EXIM,
    OPENSMTPD,
    SENDMAIL,
    DOVECOT,
    AIOSMTPD,
    SMTP_SERVER,
    HARAKA,
    QPSMTPD,
    COURIER,
)
