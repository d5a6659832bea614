"""What object storage says through LanceDB, as our errors.

LanceDB wraps the storage's answer in its own words twice over: Rust's debug form where a connection is made, prose
afterwards. So the status and the storage's own code are looked for, and what is found first decides. None of the text
is shown: a refusal quotes the key and what was signed.
"""

from __future__ import annotations

import re

from whimbrel.errors import StoreRefused, StoreUnavailable, WhimbrelError

_STORAGE = re.compile(r"RetryError|Error performing [A-Z]|lacked (the necessary|valid)|AWS credentials|ProviderError")
"""That it was the storage, or the way to it, that failed."""

_STATUS = re.compile(r"status(?: code)?: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_NOTHING_LOST = "Nothing is lost: the catalog holds everything."

_REFUSALS = (
    (
        r"Failed to get AWS credentials|ProviderError|CredentialsNotLoaded",
        "there are no keys for the object storage.",
        "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role.",
    ),
    (
        r"BadScheme|scheme is not allowed",
        "AWS_ENDPOINT is without TLS, which is not allowed.",
        "Name one with `https://`, or set AWS_ALLOW_HTTP=true where the network is safe.",
    ),
    (
        r"InvalidContentType|InvalidMessage|WrongVersion",
        "the object storage does not speak TLS.",
        "Correct AWS_ENDPOINT: `http://...`, with AWS_ALLOW_HTTP=true where the network is safe.",
    ),
    (
        r"InvalidCertificate|UnknownIssuer|[Cc]ertificate",
        "the certificate of the object storage is not trusted.",
        "Set SSL_CERT_FILE to the certificate of the authority that signed it.",
    ),
    (
        r"<Code>(ExpiredToken|InvalidToken|TokenRefreshRequired)</Code>",
        "the session's keys of the object storage are not valid any more.",
        "Renew AWS_SESSION_TOKEN and the keys that belong to it, and start again.",
    ),
    (
        r"<Code>RequestTimeTooSkewed</Code>",
        "the clock of this machine differs from the object storage's.",
        "Set it right.",
    ),
    (
        r"BareRedirect|redirect without LOCATION|<Code>(AuthorizationHeaderMalformed|PermanentRedirect)</Code>",
        "the bucket is in another region.",
        "Set AWS_REGION to the bucket's, and AWS_ENDPOINT where it is not Amazon's.",
    ),
    (
        r"<Code>NoSuchBucket</Code>|connect to namespace.*status: 404",
        "there is no such bucket.",
        "Make it, or correct the store's URI and AWS_ENDPOINT.",
    ),
    (
        r"status(?: code)?: 40[13]|lacked (the necessary|valid)",
        "the object storage does not accept the keys, or they may not do this.",
        "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they may list, read, write and delete there.",
    ),
)


def translate_remote(what: str, text: str) -> WhimbrelError | None:
    """None where the error is not the storage's, or is that an object is missing."""
    if not _STORAGE.search(text):
        return None
    code = _CODE.search(text)
    named = f" ({code[1]})" if code else ""
    for words, said, hint in _REFUSALS:
        if re.search(words, text):
            return StoreRefused(f"{what}: {said.rstrip('.')}{named}.", f"{hint} {_NOTHING_LOST}")
    status = _STATUS.search(text)
    if status is None:
        return StoreUnavailable(
            f"{what}: the object storage does not answer.", f"Check AWS_ENDPOINT and the network. {_NOTHING_LOST}"
        )
    if status[1] == "404":
        return None
    answers = f"{what}: the object storage answers {status[1]}{named}."
    if status[1] == "429" or status[1].startswith("5"):
        return StoreUnavailable(answers, f"It is tried again. {_NOTHING_LOST}")
    return StoreRefused(answers, f"Check AWS_ENDPOINT, AWS_REGION and the bucket's settings. {_NOTHING_LOST}")
