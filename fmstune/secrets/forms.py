"""Recognise secrets by their form alone, whoever they belong to.

The forms are those that the issuers of tokens document; credentials in HTTP headers, commands and URLs; and
assignments to secret names (`password=…`, `"api_key": "…"`).
"""

from __future__ import annotations

import base64
import binascii
import bisect
import math
import re
from collections.abc import Mapping
from typing import Any

from fmstune.secrets.names import is_count, is_secret_name, names_credential

REDACTED = "[redacted]"

# Each starts at a word boundary: `risk-averse-model-2` does not contain an OpenAI key. Each is linear in the
# length of the text, since SDKs' logs can have megabytes.
_FORMS = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
    r"(?:[\s\S]*?-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|[\s\S]*)"
    r"|(?<![A-Za-z0-9])(?:"
    r"(?:hf|api_org)_[A-Za-z0-9]{24,}"  # Hugging Face: 34, but no word is as long as 24
    r"|sk-(?:ant-(?:api|sid|admin)\d\d|or-v1)-[\w-]{20,}"  # Anthropic, OpenRouter
    r"|wandb_v\d+_\w{70,}|local-[0-9a-f]{40}(?![0-9A-Za-z])"  # W&B
    r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_11[A-Z0-9]{8}\w{10,}"  # GitHub
    # GitLab's prefixes are a closed list: `glaive-…`, `gliner-…` and `glue-…` are data sets and models.
    r"|(?:glpat|gldt|glrt|glrtr|glcbt|glptt|glft|glsoat|glimt|glagent|glffct|gloas)-[\w-]{16,}"
    r"|(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}(?![0-9A-Za-z])"  # AWS
    r"|xox(?:[abceprs](?:\.xox[a-z])?-(?=[\w-]{0,8}\d)|o-(?=\d{8}))[\w-]{10,}|xapp-\d[\w-]{10,}"  # Slack
    r"|AIza[\w-]{35,}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}"  # Google
    r"|eyJ[\w-]{8,512}\.[\w-]{8,}\.[\w-]{8,}"  # JSON web tokens
    r"|pypi-AgE[\w-]{32,}|npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])|dckr_(?:pat|oat)_[\w-]{20,}"
    r"|r8_[A-Za-z0-9]{37}(?![A-Za-z0-9])|gsk_[A-Za-z0-9]{52}(?![A-Za-z0-9])"  # Replicate, Groq
    r"|[sr]k_(?:live|test)_[A-Za-z0-9]{24,}"  # Stripe
    r"|dapi[0-9a-f]{32}(?![0-9A-Za-z])"  # Databricks
    r")"
    r"|(?<=hooks\.slack\.com/services/)[\w/]{16,}"
)
# These start like ordinary names (`sk-SK-common-voice-17`, `hf_instructiontuning2024`), so the rest must look
# random. The second group has bodies with more than letters and digits.
_PREFIXED = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:(?:hf|api_org|gh[pousr]|r8|gsk|npm|[sr]k_(?:live|test))_)(?P<run>[A-Za-z0-9]{16,})"
    r"|(?:sk-|xai-|pplx-|nvapi-|wandb_v\d+_|github_pat_|pypi-)(?P<body>[\w-]{16,})"
    r"|SG\.(?P<dotted>[\w-]{16,}\.[\w-]{16,}))"
)
_STARTS = (
    "-----BEGIN", "hf_", "api_org_", "sk-", "wandb_v", "local-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_",
    "github_pat_", "glpat-", "gldt-", "glrt-", "glrtr-", "glcbt-", "glptt-", "glft-", "glsoat-", "glimt-",
    "glagent-", "glffct-", "gloas-", "AKIA", "ASIA", "ABIA", "ACCA", "xox", "xapp-", "AIza", "ya29.",
    "GOCSPX-", "eyJ", "pypi-", "npm_", "dckr_", "r8_", "gsk_", "dapi", "hooks.slack.com", "k_live_",
    "k_test_", "xai-", "pplx-", "nvapi-", "SG.",
)  # fmt: skip
"""What `_FORMS` and `_PREFIXED` need to be in a text: a long one is searched for these in a fiftieth of the
time."""
_SHORT = 500
_BETWEEN_SEPARATORS = re.compile(r"[^-_./+=:]+")
_HEX = re.compile(r"(?=.*\d)(?=.*[a-f])[0-9a-f]{20,}")
# A part of a name: a word, camel case, a date, a version or a size, with a number before or after it.
_PART = re.compile(
    r"\d{0,8}(?:[A-Z]{0,5}[a-z]*|[a-z]{1,3}(?:[A-Z]{1,4}[a-z]+)+|(?:[A-Z]{1,4}[a-z]+)+|[A-Z]+)"
    r"(?:\d{0,14}|\d{1,8}[a-z]+)"
)
_HEADER = re.compile(
    r"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?)"
    r"((?:bearer|basic|token|digest|apikey|negotiate|aws4-hmac-sha256)\s+[^\n\"']+)"
    r"|(\b(?:set-)?cookie:[ \t]*)([^\s\"'=][^\n\"'=]{0,200}=[^\n\"']*)"
)
_BEARER = re.compile(r"\b(Bearer[ \t]+)[\w.~+/=-]{6,}|\b((?i:bearer)[ \t]+)(?=[\w.~+/=-]*\d)[\w.~+/=-]{8,}")
_BASIC = re.compile(r"\b((?i:basic)[ \t]+)([A-Za-z0-9+/_-]{8,}={0,2})")
# One slash is enough: a URL that is taken for a path loses the second.
_USER = re.compile(r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]{0,20}:/)(/?)([^/\s?#\"'<>]{1,256})@")
_USERS_OF_TOKENS = frozenset({"x-access-token", "x-token-auth", "oauth2", "gitlab-ci-token"})
# A password with an unescaped slash; `host:8080/x@y` has a port there.
_SLASHED = re.compile(
    r"(?<=://)([^/\s:@?#]{0,64}:)(?!\d+(?:[/?#]|$)|\[redacted\]@)([^\s\"'<>]{1,256})@(?=[\w.\[-])"
)
_SIGNATURE = re.compile(r"(?i)([?&](?:sig|[\w-]*signature|x-amz-credential)=)[^&\s#\"'\[]+")
_NAME = re.compile(r"(?<![\w.])(?P<name>[A-Za-z][\w.-]{0,80})(?P<sign>(?P<quoted>\\*[\"'])?\s?[:=]\s?)")
_VALUE = re.compile(
    r"\"(?:[^\"\\\n]|\\.){0,65536}\"|'(?:[^'\\\n]|\\.){0,65536}'"
    r"|(?P<mark>\\{1,20}[\"'])(?:(?!(?P=mark)).){0,65536}(?P=mark)"
    r"|(?P<bare>[^\s,;&\"'()\[\]{}<>\\]+)"
)
_JUDGED = 2000
"""How many characters of an unquoted value decide whether it is a secret: a value of a megabyte may follow
each of thousands of names in it."""
_JUDGED_WITHIN = 200
"""The same for names within such a value: there may be one every few characters."""
# A list of arguments, in the notation of Python and JSON.
_QUOTED_FLAG = re.compile(
    r"((?P<mark>[\"'])--(?P<name>[A-Za-z][\w-]{0,80})(?P=mark),\s?)(?P<quote>[\"'])(?P<value>[^\"'\n]{1,400})(?P=quote)"
)
_FLAG = re.compile(r"(?<!\S)(--(?P<name>[A-Za-z][\w-]{0,80})[ \t]+)(?P<value>[^\s\[-]\S*)")
# `-u 1000:1000` is a user and a group.
_CURL = re.compile(
    r"((?<!\S)(?:-u|-U|--user|--proxy-user)[ =]?[\"']?)(?!\d+:\d+(?:\s|$))"
    r"([^\s:\"'-][^\s:\"']{0,63}):([^\s\"'\[][^\s\"']*)"
)
_MYSQL = re.compile(r"(\b(?:mysql|mariadb)[\w-]{0,40}(?=[ \t])[^\n|;]{0,200}?[ \t]-p)([^\s\[]\S*)")
_PROVIDED = re.compile(
    r"(?i)(\b(?:api[ _-]?key|access key|token|password|secret|credentials?)[ \w]{0,20} "
    r"(?:provided|given|supplied)"
    r"\s?[:=]\s?[\"']?)([^\s\"'\[,.][^\s\"',]{3,})"
)
_NETRC = re.compile(r"(?i)(\blogin\s+\S{1,200}\s+password\s+)([^\s\[]\S*)")
# Only after such a word: commits have 40 hexadecimal digits, too.
_WANDB = re.compile(r"(?i)(?:wandb|w&b|api[ _-]?key)\b(?P<between>[^\n]{0,60}?)\b(?P<key>[0-9a-f]{40})\b")
_COMMIT = re.compile(r"(?i)commit|revision|\bsha|hash|\brev\b|\bgit\b")
_SECRET_FLAG = re.compile(r"--?[A-Za-z][\w-]{2,80}")
_NOTHING = frozenset({"none", "null", "true", "false", "nan", "str", "int", "bool", "float", "bytes", "..."})
_PLACEHOLDER = re.compile(r"<[^<>]*>|\[[A-Za-z0-9_ ]*\]|\$\{?\w+\}?|\*+|…|\{\w*\}")
_LIKE_A_PASSWORD = re.compile(r"(?=.*\d)(?=.*[A-Za-z]).{5,}")
_LIKE_A_TOKEN = re.compile(r"(?=.*\d)(?=.*[A-Za-z]).{8,}")


def hide_forms(text: str, *, tracked: bool = False) -> str:
    """Replace everything that is a secret by its form alone with `[redacted]`. In `tracked` text, `token=the`
    is about a model's token, and stays."""
    if len(text) < _SHORT or any(start in text for start in _STARTS):
        text = _PREFIXED.sub(_of_prefixed, _FORMS.sub(REDACTED, text))
    lower = text.casefold()
    if " " in text:
        if "authorization" in lower or "cookie:" in lower:
            text = _HEADER.sub(_after_header, text)
        if "bearer" in lower:
            text = _BEARER.sub(lambda found: f"{found[1] or found[2]}{REDACTED}", text)
        if "basic" in lower:
            text = _BASIC.sub(_of_basic, text)
        if "login" in lower:
            text = _NETRC.sub(rf"\1{REDACTED}", text)
        if "--" in text:
            text = _QUOTED_FLAG.sub(_of_quoted_flag, _FLAG.sub(_of_flag, text))
        if "mysql" in text or "mariadb" in text:
            text = _MYSQL.sub(rf"\1{REDACTED}", text)
        if "provided" in lower or "given" in lower or "supplied" in lower:
            text = _PROVIDED.sub(_of_provided, text)
        if "curl" in text or "wget" in text or "http" in text:
            text = _CURL.sub(rf"\1\2:{REDACTED}", text)
    text = hide_users(text)
    if "?" in text:
        text = _SIGNATURE.sub(rf"\1{REDACTED}", text)
    if "=" in text or ":" in text:
        text = _hide_assigned(text, tracked)
    return _WANDB.sub(_of_wandb, text) if any(word in lower for word in ("wandb", "w&b", "api")) else text


def hide_users(text: str) -> str:
    """Remove users and passwords from the URLs in a text."""
    if ":/" not in text or "@" not in text:
        return text
    return _SLASHED.sub(f"{REDACTED}@", _USER.sub(_of_user, text))


def is_secret_flag(argument: Any) -> bool:
    """Whether the argument after this one is a secret: `--api-key`."""
    return (
        isinstance(argument, str)
        and _SECRET_FLAG.fullmatch(argument) is not None
        and is_secret_name(argument)
    )


def holds_redacted(value: Any) -> bool:
    """Whether a value contains a redacted secret, so that it cannot be used."""
    if isinstance(value, Mapping):
        return any(map(holds_redacted, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(holds_redacted, value))
    return isinstance(value, str) and REDACTED in value


def is_placeholder(value: str) -> bool:
    """Whether a string is a placeholder for a value: `<pad>`, `[PAD]`, `$TOKEN`, `[redacted]`."""
    return _PLACEHOLDER.fullmatch(value) is not None


def looks_random(text: str) -> bool:
    """Whether a string looks random, like tokens, rather than composed of words, dates, versions and
    separators, like names."""
    parts = _BETWEEN_SEPARATORS.findall(text)
    if any(_HEX.fullmatch(part) for part in parts):
        return True
    return sum(len(part) for part in parts if len(part) >= 8 and not _PART.fullmatch(part)) >= 16


def url_secrets(text: str) -> list[str]:
    """The passwords and tokens in the URLs in a text, both raw and decoded."""
    from urllib.parse import unquote

    found = [info for _, _, info in _USER.findall(text) if _is_secret_user(info)]
    found += [user + password for user, password in _SLASHED.findall(text)]
    passwords = [info.partition(":")[2] or info for info in found]
    return list(dict.fromkeys([*passwords, *map(unquote, passwords)]))


def _of_prefixed(found: re.Match[str]) -> str:
    body = found["run"] or found["body"] or found["dotted"]
    # Fixed lengths used by issuers; 48 random letters could be mistaken for camel case.
    whole = len(body) in (32, 48, 80) and body.isalnum() and not body.isalpha() and not _PART.fullmatch(body)
    return REDACTED if whole or looks_random(body) else found[0]


def _after_header(found: re.Match[str]) -> str:
    before, value = found[1] or found[3], found[2] or found[4]
    scheme, _, rest = value.partition(" ")
    if found[1] and rest.lstrip().startswith(REDACTED):
        return found[0]
    return f"{before}{scheme} {REDACTED}" if found[1] else f"{before}{REDACTED}"


def _of_basic(found: re.Match[str]) -> str:
    """`Basic dXNlcjpwYXNz` contains a user and a password; `basic training` does not."""
    try:
        decoded = base64.b64decode(found[2] + "=" * (-len(found[2]) % 4), altchars=b"-_")
    except (ValueError, binascii.Error):
        return found[0]
    return f"{found[1]}{REDACTED}" if b":" in decoded and decoded.isascii() else found[0]


def _of_user(found: re.Match[str]) -> str:
    start, slash, info = found.groups()
    if not slash and ":" not in info:
        return found[0]
    return f"{start}{slash}{REDACTED}@" if _is_secret_user(info) else found[0]


def _is_secret_user(info: str) -> bool:
    """Whether the user part of a URL contains a secret."""
    if ":" in info:
        return info.partition(":")[2] not in ("", REDACTED)
    if info == REDACTED:
        return False
    return info in _USERS_OF_TOKENS or looks_random(info) or hide_forms(info) != info


def _hide_assigned(text: str, tracked: bool) -> str:
    kept, done, at = [], 0, 0
    bare_end = 0  # the end of the last unquoted value, and of values nested in it
    random: list[tuple[int, float]] = []  # start and end of random-looking parts of that value
    while found := _NAME.search(text, at):
        at = found.end()
        if not is_secret_name(found["name"]):
            continue
        quote, most = "", _JUDGED
        if at >= bare_end:
            value = _VALUE.match(text, at)
            if value is None:
                continue
            end = value.end()
            if value["bare"] is None:
                quote = value["mark"] or value[0][0]
            else:
                bare_end, random = end, []
        else:
            end, most = bare_end, _JUDGED_WITHIN
            random = random or _random_parts(text, at, end)
        inside = text[at + len(quote) : min(end - len(quote), at + len(quote) + most)]
        known = _is_random_at(random, at, at + _JUDGED) if random else None
        if _is_secret_value(found, inside, quote, tracked, known):
            kept += [text[done:at], f"{quote}{REDACTED}{quote}"]
            done = at = end
    return "".join([*kept, text[done:]]) if kept else text


def _random_parts(text: str, start: int, end: int) -> list[tuple[int, float]]:
    """The start of each random-looking part of a text, and the end at which `looks_random` would be true; the
    last entry has none. With these, each name within a value of a megabyte costs only a lookup."""
    found: list[tuple[int, float]] = [(len(text), math.inf)]
    following = math.inf
    for part in reversed(list(_BETWEEN_SEPARATORS.finditer(text, start, end))):
        one = part[0][:_JUDGED]
        if len(one) >= 8 and (_HEX.fullmatch(one) or not _PART.fullmatch(one)):
            found.append((part.start(), part.end() if len(one) >= 16 else following))
            following = part.end()
    return found[::-1]


def _is_random_at(random: list[tuple[int, float]], start: int, end: int) -> bool:
    """Whether the text from `start` to `end` looks random."""
    return random[bisect.bisect_left(random, (start, 0))][1] <= end


def _is_secret_value(
    name: re.Match[str], inside: str, quote: str, tracked: bool, known_random: bool | None
) -> bool:
    """Whether the value assigned to a secret name is a secret, judged by its first characters; `known_random`
    is whether these look random, if known."""
    before = name.string[max(0, name.start() - 1) : name.start()]
    if not inside or inside.lower() in _NOTHING or is_placeholder(inside):
        return False
    if is_count(name["name"]) and inside.isdigit():
        return False
    if (
        tracked
        and not names_credential(name["name"])
        and not (looks_random(inside) if known_random is None else known_random)
        and before not in ("?", "&")
    ):
        return False
    # A partitioned table: `lang=sk/token=bpe32000/part.parquet`.
    folder = before == "/" or ("/" in inside and re.search(r"\.\w{2,8}$", inside[-9:]) is not None)
    if "=" in name["sign"] and not quote and folder and not looks_random(inside.partition("/")[0]):
        return False
    # `token: the next one` is prose; `"token": the…` and `token=…` are not.
    colon = ":" in name["sign"] and not name["quoted"] and not quote
    header = "-" in name["name"]  # X-Auth-Token: …
    like_one = _LIKE_A_PASSWORD if names_credential(name["name"]) else _LIKE_A_TOKEN
    return not colon or header or like_one.fullmatch(inside) is not None


def _of_flag(found: re.Match[str]) -> str:
    value = found["value"]
    stands_for_one = is_placeholder(value) or (value.isalpha() and value.isupper())
    return found[0] if stands_for_one or not is_secret_name(found["name"]) else f"{found[1]}{REDACTED}"


def _of_quoted_flag(found: re.Match[str]) -> str:
    value = found["value"]
    if value.startswith("-") or is_placeholder(value) or not is_secret_name(found["name"]):
        return found[0]
    return f"{found[1]}{found['quote']}{REDACTED}{found['quote']}"


def _of_provided(found: re.Match[str]) -> str:
    return found[0] if found[2].lower() in _NOTHING or is_placeholder(found[2]) else f"{found[1]}{REDACTED}"


def _of_wandb(found: re.Match[str]) -> str:
    if _COMMIT.search(found["between"]):
        return found[0]
    return found[0][: -len(found["key"])] + REDACTED
